"""The engine's thread when there is nothing to do."""

import threading

from serve.engine.worker import EngineThread


class Resting:
    """A model without work that notes when it rests."""

    scheduler = pooling = None

    def __init__(self):
        self.rests = 0
        self.rested = threading.Event()

    def rest(self):
        self.rests += 1
        self.rested.set()


def test_a_model_without_work_gives_back_what_it_keeps_once():
    model = Resting()
    engine = EngineThread(model, channel=None, rest_seconds=0.02)
    thread = threading.Thread(target=engine.run)
    thread.start()
    assert model.rested.wait(10)
    model.rested.clear()
    assert not model.rested.wait(0.2), "there is nothing more to give back"
    done = threading.Event()
    engine.post(done.set)
    assert done.wait(10)
    assert model.rested.wait(10), "after more work it rests again"
    engine.post(None)
    thread.join(10)
    assert not thread.is_alive()
    assert model.rests == 2


def test_work_that_comes_in_time_is_not_kept_waiting():
    model = Resting()
    engine = EngineThread(model, channel=None, rest_seconds=60)
    thread = threading.Thread(target=engine.run)
    thread.start()
    done = threading.Event()
    engine.post(done.set)
    assert done.wait(10)
    engine.post(None)
    thread.join(10)
    assert model.rests == 0
