"""A run is laid out, fits, trains, and goes on after it was broken off."""

import json
import shutil
from dataclasses import replace
from pathlib import Path

import mlx.core as mx
import pytest

from finetune.base import Base
from finetune.curve import loss_curve
from finetune.data.dataset import DataReport, Dataset
from finetune.lanes import Lanes
from finetune.memory_plan import Probe, fit_run
from finetune.observer import read_history
from finetune.ranks import Ranks
from finetune.recipe import Recipe, make_recipe, read_recipe, write_recipe
from finetune.session import Session, describe
from localllm.errors import DataError, DiskFullError, JobCancelledError, MemoryFitError, UsageError
from localllm.jobs.events import Checkpoint, Evaluation, Sample, Step
from tests.fakes.tiny_llama import random_examples, tiny_llama

PROMPTS = (({"role": "user", "content": "Hello?"},),)
DATA = Dataset(
    tuple(random_examples(40)), tuple(random_examples(6, seed=9)), DataReport({}, 0, 0, (), (), ()), PROMPTS, "ab" * 32
)


class Context:
    """A job's context that keeps its events."""

    def __init__(self, directory, cancel_after=None):
        self.directory, self.out = directory, directory / "out"
        self.out.mkdir(parents=True, exist_ok=True)
        self.events, self.cancel_after = [], cancel_after

    @property
    def cancelled(self):
        return self.cancel_after is not None and len(self.of(Step)) >= self.cancel_after

    def check_cancelled(self):
        if self.cancelled:
            raise JobCancelledError

    def emit(self, event):
        self.events.append(event)

    def of(self, kind):
        return [event for event in self.events if isinstance(event, kind)]


def session(context, budget=1 << 30, data=DATA, **changes):
    fields = {"model": "tiny", "data": ("rows.jsonl",), "rank": 4, "learning_rate": 1e-2, "batch_tokens": 128}
    recipe = Recipe(**{**fields, "steps": 12, "eval_every": 4, "save_every": 5, **changes})
    base = Base(tiny_llama(), {"model_type": "llama"}, 97, mx.float32, on_cpu=True)
    return recipe, Session(
        recipe, base, data, context, budget, lambda chat, _n: f"to {chat[-1]['content']}", Ranks(), Lanes()
    )


def test_it_tells_trains_and_reports(tmp_path):
    context = Context(tmp_path)
    recipe, run = session(context)
    outcome = run.run()
    steps = context.of(Step)
    assert [step.step for step in steps] == list(range(1, 13))
    assert steps[-1].metrics["loss"] < steps[0].metrics["loss"]
    assert [event.step for event in context.of(Evaluation)] == [0, 4, 8, 12]
    assert context.of(Sample)[0].text == "to Hello?"
    assert all((tmp_path / event.path).is_dir() or event.step < 8 for event in context.of(Checkpoint))
    assert (outcome.adapter / "adapters.safetensors").is_file()
    said = []
    report = describe(recipe, DATA, outcome, said.append)
    assert report["data"]["sha256"] == DATA.sha256
    assert report["memory"]["predicted"] > 0
    json.dumps(report)


def test_a_cancelled_run_saves_and_goes_on_with_the_same_losses(tmp_path):
    whole = Context(tmp_path / "whole")
    session(whole)[1].run()
    broken = Context(tmp_path / "broken", cancel_after=7)
    with pytest.raises(JobCancelledError):
        session(broken)[1].run()
    rest = Context(tmp_path / "broken")
    session(rest)[1].run()
    losses = [step.metrics["loss"] for step in whole.of(Step)]
    assert [step.step for step in rest.of(Step)] == [8, 9, 10, 11, 12]
    assert [step.metrics["loss"] for step in rest.of(Step)] == losses[7:]
    history = read_history(rest.out)
    assert [record["step"] for record in history if "loss" in record] == list(range(1, 13))
    assert loss_curve(history, "a < b").startswith("<svg")


def test_a_torn_line_of_the_history_costs_only_itself(tmp_path):
    context = Context(tmp_path)
    (context.out / "history.jsonl").write_text('{"step": 1, "los')
    session(context, steps=2)[1].run()
    assert [record["step"] for record in read_history(context.out) if "loss" in record] == [1, 2]


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="only Linux has /dev/full")
def test_a_disk_too_full_for_the_history_is_said(tmp_path):
    context = Context(tmp_path)
    (context.out / "history.jsonl").symlink_to("/dev/full")
    with pytest.raises(DiskFullError, match=r"history\.jsonl could not be written"):
        session(context)[1].run()


def test_measuring_draws_nothing_from_the_run(tmp_path):
    """A run that goes on before its first checkpoint measures nothing, and must draw the same dropout."""
    losses = []
    for _ in range(2):
        context = Context(tmp_path)
        session(context, dropout=0.3, steps=2, save_every=9)[1].run()
        losses.append([step.metrics["gradient_norm"] for step in context.of(Step)])
        shutil.rmtree(tmp_path / "checkpoints")
    assert losses[0] == losses[1]


def test_a_run_does_not_go_on_with_other_data(tmp_path):
    with pytest.raises(JobCancelledError):
        session(Context(tmp_path, cancel_after=3))[1].run()
    with pytest.raises(DataError, match="has changed"):
        session(Context(tmp_path), data=replace(DATA, sha256="cd" * 32))[1].run()


def test_a_rank_that_reads_other_rows_says_so(tmp_path, monkeypatch):
    session(Context(tmp_path), steps=1)[1].run()
    plan = json.loads((tmp_path / "out" / "plan.json").read_text())
    monkeypatch.setattr(Ranks, "told", lambda self, record: plan)
    monkeypatch.setattr(Ranks, "least", lambda self, number: number)
    run = session(Context(tmp_path / "other"), data=replace(DATA, sha256="cd" * 32))[1]
    run._ranks = Ranks(1, 2)
    with pytest.raises(DataError, match="not those that rank 0 reads"):
        run.run()
    assert not (tmp_path / "other" / "out" / "plan.json").exists()


def test_fewer_positions_than_a_row_has_mean_one_row(tmp_path):
    outcome = session(Context(tmp_path), steps=1, micro_tokens=8)[1].run()
    assert outcome.plan.rows == 1


def test_what_does_not_fit_is_refused_before_it_starts(tmp_path):
    with pytest.raises(MemoryFitError, match="needs about"):
        session(Context(tmp_path), budget=1)[1].run()


def test_less_memory_means_smaller_batches_then_more_recomputation():
    probes = {
        "none": Probe(fixed=100, per_token=10, seconds_per_token=1),
        "all": Probe(fixed=100, per_token=2, seconds_per_token=2),
    }
    roomy = fit_run(probes.__getitem__, ("none", "all"), wanted=64, capacity=16, budget=10_000)
    assert (roomy.checkpointing, roomy.micro_tokens, roomy.note) == ("none", 64, "")
    tight = fit_run(probes.__getitem__, ("none", "all"), wanted=64, capacity=16, budget=500)
    assert (tight.checkpointing, tight.micro_tokens) == ("none", 32)
    assert "batches of 32 tokens" in tight.note
    tighter = fit_run(probes.__getitem__, ("none", "all"), wanted=64, capacity=16, budget=200)
    assert (tighter.checkpointing, tighter.micro_tokens) == ("all", 32)


def test_a_pass_on_a_gpu_takes_no_longer_than_it_may_but_never_less_than_a_row():
    probes = {"none": Probe(fixed=100, per_token=1, seconds_per_token=0.02)}

    def fitted(seconds):
        return fit_run(probes.__getitem__, ("none",), wanted=64, capacity=16, budget=10_000, pass_seconds=seconds)

    assert [fitted(seconds).micro_tokens for seconds in (2.0, 1.0, 0.5, 0.1)] == [64, 48, 16, 16]
    assert fitted(0.5).note == "", "it is no matter of memory, and an update learns from the same rows"
    assert fitted(0.5).predicted < fitted(2.0).predicted


def test_recipes_are_read_written_and_refused(tmp_path):
    (tmp_path / "rows.jsonl").write_text("{}")
    path = tmp_path / "sft.yaml"
    path.write_text("model: m\ndata: rows.jsonl\nrank: 4\n")
    recipe = read_recipe(path)
    assert recipe.data == (str(tmp_path / "rows.jsonl"),)
    write_recipe(tmp_path / "again.yaml", recipe)
    assert read_recipe(tmp_path / "again.yaml") == recipe
    with pytest.raises(UsageError, match="rank"):
        make_recipe({"model": "m", "data": ["x"], "rank": 0})
    with pytest.raises(UsageError, match="foo"):
        make_recipe({"model": "m", "data": ["x"], "foo": 1})
    path.write_text("- a\n- b\n")
    with pytest.raises(UsageError, match="is no recipe"):
        read_recipe(path)
