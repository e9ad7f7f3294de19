"""The loop: it learns, resumes to the last bit, keeps the best, stops when it should."""

import math
import shutil

import mlx.core as mx
import numpy as np
import pytest
from mlx.utils import tree_flatten

from finetune.body import find_body
from finetune.checkpoints import Checkpoints
from finetune.lora import adapter_config, add_adapters
from finetune.optimizer import clip, learning_rate, make_optimizer
from finetune.packing import BatchPlan
from finetune.ranks import Ranks
from finetune.recipe import Recipe
from finetune.steps import Stepper
from finetune.trainer import DivergedError, Progress, Schedule, Trainer
from localllm.errors import DiskFullError, InvalidModelError, JobCancelledError
from tests.fakes.tiny_llama import random_examples, tiny_llama

EXAMPLES = random_examples(40)
VALID = random_examples(8, seed=9)


class Run:
    """One run, with everything it told."""

    def __init__(self, tmp_path, n_steps=12, cancel_at=None, **changes):
        recipe = {"model": "tiny", "data": ("rows.jsonl",), "rank": 4, "alpha": 8, "learning_rate": 1e-2, **changes}
        self.recipe = Recipe(**recipe)
        model = tiny_llama()
        body = find_body(model, 97)
        mx.random.seed(self.recipe.seed)
        keys = add_adapters(model, self.recipe)
        plan = BatchPlan(EXAMPLES, rows=1, capacity=64, packed=True, seed=0)
        valid = list(BatchPlan(VALID, rows=2, capacity=64, packed=True, seed=0).batches(0))
        self.losses, self.evaluations, self.updates = [], [], []
        self.checkpoints = Checkpoints(tmp_path, adapter_config(self.recipe, keys, 2))
        self.cancel_at = cancel_at
        stepper = Stepper(body, packed=True, fused=False, checkpointed=[], compute=mx.float32, compiled=False)
        schedule = Schedule(n_steps, accumulate=2, eval_every=4, save_every=3, patience=0)
        optimizer = make_optimizer(self.recipe)
        optimizer.init(model.trainable_parameters())
        self.trainer = Trainer(
            model, stepper, optimizer, self.recipe, schedule, plan, valid, self, self.check_cancelled, Ranks()
        )

    def check_cancelled(self):
        if self.cancel_at is not None and len(self.losses) >= self.cancel_at:
            raise JobCancelledError

    def updated(self, update):
        self.losses.append(update.loss)
        self.updates.append(update)

    def evaluated(self, step, loss, *, best):
        self.evaluations.append((step, loss, best))

    def checkpoint_due(self, progress, *, best):
        self.checkpoints.save(self.trainer.model, self.trainer.optimizer, progress, best=best)

    def resume(self):
        progress = self.checkpoints.restore(self.trainer.model, self.trainer.optimizer)
        assert progress is not None
        self.trainer.progress = progress
        return self

    def run(self):
        self.trainer.run()
        return self


def weights_of(run):
    return {name: np.array(value) for name, value in tree_flatten(run.trainer.model.trainable_parameters())}


def test_it_learns(tmp_path):
    run = Run(tmp_path, n_steps=30).run()
    assert np.mean(run.losses[-5:]) < 0.8 * run.losses[0]
    assert [step for step, *_ in run.evaluations] == [0, 4, 8, 12, 16, 20, 24, 28, 30]


@pytest.mark.parametrize("changes", [{}, {"dropout": 0.2}, {"optimizer": "adafactor"}, {"method": "dora"}])
def test_a_resumed_run_gives_the_same_losses_to_the_last_bit(tmp_path, changes):
    whole = Run(tmp_path / "whole", **changes).run()
    broken = Run(tmp_path / "broken", cancel_at=8, **changes)
    with pytest.raises(JobCancelledError):
        broken.run()
    rest = Run(tmp_path / "broken", **changes).resume().run()
    assert rest.trainer.progress.step == 12
    assert rest.losses == whole.losses[-len(rest.losses) :]
    assert len(rest.losses) >= 12 - 8
    ours, theirs = weights_of(rest), weights_of(whole)
    assert all(np.array_equal(ours[name], theirs[name]) for name in theirs)


def test_a_run_broken_off_in_an_evaluation_makes_up_for_it(tmp_path):
    whole = Run(tmp_path / "whole").run()
    broken = Run(tmp_path / "broken")

    def cancelled_at_its_samples(step, loss, *, best):
        if step == 8:
            raise JobCancelledError

    broken.evaluated = cancelled_at_its_samples
    with pytest.raises(JobCancelledError):
        broken.run()
    broken.checkpoint_due(broken.trainer.progress, best=False)  # as a session does that is cancelled between updates
    rest = Run(tmp_path / "broken").resume().run()
    assert [step for step, *_ in rest.evaluations] == [8, 12]
    assert rest.evaluations == whole.evaluations[2:]
    assert rest.losses == whole.losses[8:]
    assert rest.trainer.progress.best_loss == whole.trainer.progress.best_loss
    ours, theirs = ((tmp_path / name / "best" / "adapters.safetensors").read_bytes() for name in ("broken", "whole"))
    assert ours == theirs


def test_two_checkpoints_and_the_best_are_kept(tmp_path):
    Run(tmp_path).run()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-000009", "step-000012"]
    assert {path.name for path in (tmp_path / "best").iterdir()} == {
        "adapter_config.json", "adapters.safetensors", "progress.json",
    }  # fmt: skip


@pytest.mark.parametrize("name", ["progress.json", "optimizer.safetensors", "adapters.safetensors"])
def test_a_damaged_checkpoint_is_named_and_the_one_before_it_serves(tmp_path, name):
    Run(tmp_path).run()
    (tmp_path / "step-000012" / name).write_bytes(b"x" * 20)
    with pytest.raises(InvalidModelError, match="step-000012 is damaged") as raised:
        Run(tmp_path).resume()
    assert "Remove it and resume" in raised.value.hint
    shutil.rmtree(tmp_path / "step-000012")
    assert Run(tmp_path).resume().trainer.progress.step == 9


def test_a_full_disk_keeps_what_was_whole(tmp_path, monkeypatch):
    run = Run(tmp_path)
    run.run()

    def no_room(*_args, **_kwargs):
        raise RuntimeError("[save_safetensors] no space left on device")

    monkeypatch.setattr(mx, "save_safetensors", no_room)
    with pytest.raises(DiskFullError, match="step-000013"):
        run.checkpoints.save(run.trainer.model, run.trainer.optimizer, Progress(step=13), best=False)
    monkeypatch.undo()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best", "step-000009", "step-000012"]
    assert Run(tmp_path).resume().trainer.progress.step == 12


def test_patience_ends_the_run(tmp_path):
    run = Run(tmp_path, n_steps=400, learning_rate=0.3)
    run.trainer.schedule = Schedule(400, accumulate=1, eval_every=2, save_every=100, patience=2)
    run.run()
    assert run.trainer.progress.step < 400
    assert run.trainer.progress.worse == 2


def test_a_loss_that_is_no_number_stops_it_and_keeps_the_last_good_state(tmp_path):
    run = Run(tmp_path)
    run.trainer.schedule = Schedule(12, accumulate=1, eval_every=0, save_every=3, patience=0)
    original = run.updated

    def poison(update):
        original(update)
        if update.step == 5:
            run.trainer.parameters = {"model": {"layers": []}}
            bad = run.trainer.model.layers[0].self_attn.q_proj
            bad.linear.weight = bad.linear.weight * math.nan
            run.trainer.parameters = run.trainer.model.trainable_parameters()

    run.updated = poison
    with pytest.raises(DivergedError, match="update 6"):
        run.run()
    assert Run(tmp_path).resume().trainer.progress.step == 3


def test_accumulation_divides_by_all_tokens_at_once(tmp_path):
    """The loss of an update is the mean over its tokens, not the mean of the means of its batches."""
    run = Run(tmp_path, n_steps=1)
    batches = list(run.trainer.plan.batches(0))[:2]
    run.trainer.model.train()
    sums = [run.trainer.stepper.loss(batch).item() for batch in batches]
    run.run()
    assert run.losses[0] == pytest.approx(sum(sums) / sum(batch.n_supervised for batch in batches), rel=1e-5)


def test_two_ranks_split_a_batch_between_them():
    batch = next(BatchPlan(EXAMPLES, rows=3, capacity=64, packed=True, seed=0).batches(0))
    shares = [Ranks(rank, 2).share(batch) for rank in range(2)]
    assert [len(share.inputs) for share in shares] == [2, 1]
    assert sum(share.n_supervised for share in shares) == batch.n_supervised
    assert Ranks(3, 4).share(batch).n_supervised == 0


def test_clipping_and_the_schedule():
    gradient, norm = clip({"a": mx.array([3.0]), "b": mx.array([4.0])}, 1.0)
    assert norm.item() == pytest.approx(5)
    assert gradient["a"].item() == pytest.approx(0.6, rel=1e-4)
    assert clip({"a": mx.array([3.0])}, 0)[0]["a"].item() == 3.0
    recipe = Recipe(model="m", data=("d",), learning_rate=1.0, warmup=0.1)
    rates = [learning_rate(recipe, step, 100) for step in range(100)]
    assert rates[0] == pytest.approx(1 / 11)
    assert max(rates) == rates[10] == 1.0
    assert rates[-1] == pytest.approx(0.1, abs=0.01)
    assert learning_rate(recipe.model_copy(update={"schedule": "linear"}), 99, 100) == pytest.approx(1 / 90)
