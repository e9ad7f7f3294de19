"""The queue of embeddings and scores: nothing is lost or mixed up, and nobody who decodes waits long."""

import numpy as np
import pytest

from localllm.errors import RequestError
from serve.engine.pooled import PooledJob, PooledQueue
from serve.engine.types import Scores


class FakePool:
    """Each vector holds the sum of its tokens; a token takes a second, and a batch another one."""

    def __init__(self, n_rows=64, n_seq=4):
        self.n_rows, self.n_seq = n_rows, n_seq
        self.batches = []
        self.now = 0.0

    def run(self, inputs):
        assert inputs
        assert len(inputs) <= self.n_seq
        assert sum(map(len, inputs)) <= max(self.n_rows, len(inputs[0]))
        if any(-1 in tokens for tokens in inputs):
            raise RequestError("No.")
        self.batches.append([len(tokens) for tokens in inputs])
        self.now += 1 + self.batches[-1][0] * 0 + sum(self.batches[-1])
        return [np.array([sum(tokens)], np.float32) for tokens in inputs]


@pytest.fixture
def pool():
    return FakePool()


@pytest.fixture
def queue(pool):
    return PooledQueue(pool, clock=lambda: pool.now)


def job(number, *inputs):
    return PooledJob(number, inputs, lambda rows: Scores(tuple(float(row[0]) for row in rows), len(rows)))


def run_all(queue, beside=None):
    events = []
    while not queue.idle:
        events += queue.step(beside)
    return dict(events)


def test_every_input_gets_its_own_vector_in_order(queue, pool):
    queue.submit(job(1, *([n] for n in range(11))))
    queue.submit(job(2, [100, 1], [200]))
    got = run_all(queue)
    assert got[1].values == tuple(map(float, range(11)))
    assert got[2].values == (101.0, 200.0)
    assert max(map(len, pool.batches)) == 4, "as many in a batch as fit"
    assert len(pool.batches) == 4


def test_a_batch_holds_no_more_tokens_than_fit(queue, pool):
    queue.submit(job(1, [1] * 40, [1] * 30, [1] * 30))
    run_all(queue)
    assert pool.batches == [[40], [30, 30]]


def test_a_short_job_does_not_wait_for_a_long_one(queue):
    queue.submit(job(1, *([1] for _ in range(100))))
    queue.step()
    queue.submit(job(2, [5]))
    done = [number for _ in range(2) for number, _ in queue.step()]
    assert done == [2]


def test_nothing_is_answered_at_once(queue, pool):
    queue.submit(job(1))
    assert run_all(queue)[1].values == ()
    assert pool.batches == []


def test_slices_beside_a_generation_are_as_short_as_its_steps(queue, pool):
    queue.submit(job(1, *([1] * 16 for _ in range(40))))
    while not queue.idle:
        queue.step(beside=8.0)  # the scheduler's step takes as long as eight tokens here
    assert all(batch == [16] for batch in pool.batches[2:]), "one input at a time, once the pace is known"


def test_slices_grow_with_the_scheduler_s_steps(queue, pool):
    queue.submit(job(1, *([1] * 8 for _ in range(40))))
    while not queue.idle:
        queue.step(beside=22.0)
    assert max(map(len, pool.batches[4:])) > 1


def test_a_job_that_is_cancelled_is_forgotten(queue, pool):
    queue.submit(job(1, *([1] for _ in range(9))))
    queue.submit(job(2, [2]))
    queue.step()
    queue.cancel(1)
    queue.cancel(7)
    assert set(run_all(queue)) <= {2}
    assert queue.idle
    assert len(pool.batches) == 1


def test_what_the_model_refuses_ends_the_jobs_of_that_batch_only(queue):
    queue.submit(job(1, [-1]))
    queue.submit(job(2, [1], [2]))
    queue.submit(job(3, *([3] for _ in range(3))))
    events = dict(queue.step())
    assert isinstance(events[1], RequestError)
    queue.submit(job(4, [4]))
    assert run_all(queue)[4].values == (4.0,)
