"""The Compress screen with what was measured: figures, the plot, the job that measures, the plan for a budget."""

import threading

import pytest
from textual.widgets import Input, OptionList

from app.cli.main import main
from app.tui.candidates import Compression
from app.tui.screens.compress import CompressScreen
from app.tui.screens.dialogs import ChoiceDialog, ConfirmDialog, LineDialog
from app.tui.widgets.job_bar import JobBar
from app.tui.widgets.scatter import Scatter
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from quant.report.record import kept_report
from tests.app.tui.test_chat import notices, wait_for
from tests.app.tui.test_compress import notes, opened
from tests.app.tui.test_hostile import HOSTILE, assert_clean
from tests.app.tui.test_models import wait_long
from tests.app.tui.test_windows import options
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.jobs import jobs as jobs  # a fixture
from tests.fakes.models import put_model
from tests.fakes.reports import made_up_row, put_report


@pytest.fixture
def measured(home):
    """A model of 271 MB by its manifest, tiny in truth, and a report on it."""
    model = put_model(home, variant="f16", size=271_000_000, parameters=134_515_008, n_ctx_train=8192)
    path = home.models / "smollm2-135m" / "f16" / "model.gguf"
    path.unlink()
    write_tiny_gguf(path)
    put_report(home, model)
    return model


@pytest.fixture
def tiny(home, tmp_path, monkeypatch, capsys, jobs):
    """A tiny model as ``tiny:f16`` whose rows K-quants can take."""
    path = write_tiny_gguf(tmp_path / "tiny.gguf", n_embd=256, n_ff=256, n_layer=1)
    assert main(["pull", str(path), "--as", "tiny:f16"]) == 0
    capsys.readouterr()
    return ModelStore(home)


def drawn(app):
    """The plot as text; empty where it is not shown."""
    plot = app.screen.query_one(Scatter)
    return str(plot.render()) if plot.display else ""


def shows_list(app):
    return app.screen.query_one("#candidates", OptionList).display


async def test_figures_beside_the_types_and_the_plot_in_their_place(make_app, measured, settle):
    app = make_app(memory_gb=1)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, settle)
        found = {option.split()[0]: option for option in options(app)}
        assert "KL 0.0190 ppl 10.19" in found["q4_k_m"]
        assert "KL" not in found["iq3_m"]
        assert drawn(app) == ""
        await pilot.press("p")
        await wait_for(pilot, lambda: drawn(app))
        assert not shows_list(app)
        for word in ("★", "◆", "○", "●", ":q4_k_m", "q2_k", "recommended", "100M", "0.01"):
            assert word in drawn(app)
        assert max(map(len, drawn(app).splitlines())) <= 80
        assert_clean(app)
        await pilot.press("p")
        await wait_for(pilot, lambda: shows_list(app) and app.screen.focused is not None)
        assert drawn(app) == ""
        await pilot.press("home", "j")
        await wait_for(pilot, lambda: notes(app).startswith("q6_k "))


def test_what_was_measured_is_no_estimate(home, measured):
    found = {one.name: one for one in Compression.of(ModelStore(home), "smollm2-135m", 0, 1).estimates()}
    assert (found["q4_k_m"].n_bytes, found["q4_k_m"].exact) == (105_000_000, True)
    assert (found["q4_k_s"].exact, found["q4_k_s"].kl) == (False, None)


async def test_both_where_there_is_room(make_app, measured, settle):
    app = make_app(memory_gb=1)
    async with app.run_test(size=(140, 40)) as pilot:
        await opened(pilot, settle)
        await wait_for(pilot, lambda: drawn(app))
        assert shows_list(app)
        await pilot.press("p")  # nothing to choose
        await settle(pilot)
        assert shows_list(app)
        assert drawn(app)
        await pilot.resize_terminal(80, 24)
        await wait_for(pilot, lambda: not drawn(app))
        assert shows_list(app)


async def test_no_report_no_plot(make_app, measured, home, settle):
    put_model(home, "other", "f16", parameters=1_000_000)
    (home.models / "other" / "f16" / "model.gguf").unlink()
    write_tiny_gguf(home.models / "other" / "f16" / "model.gguf", seed=1)
    app = make_app(memory_gb=1, model="other:f16")
    async with app.run_test(size=(140, 40)) as pilot:
        await opened(pilot, settle)
        assert not any("KL" in option for option in options(app))
        assert drawn(app) == ""
        await pilot.press("p")
        await settle(pilot)
        assert shows_list(app)


async def test_a_slow_look_at_one_model_does_not_cover_the_next(make_app, measured, home, settle, monkeypatch):
    other = put_model(home, "other", "f16", size=271_000_000, parameters=134_515_008, n_ctx_train=8192)
    path = ModelStore(home).file(other)
    path.unlink()
    write_tiny_gguf(path)
    begun, gate, estimates = threading.Event(), threading.Event(), Compression.estimates

    def slow(compression):
        if compression.model.name == measured.name:
            begun.set()
            assert gate.wait(30)
        return estimates(compression)

    monkeypatch.setattr(Compression, "estimates", slow)
    monkeypatch.setattr(Compression, "plans", lambda *_: iter(()))  # as of a directory: nothing is shown later
    app = make_app(memory_gb=1, model=str(measured.model_name))
    async with app.run_test(size=(120, 40)) as pilot:
        await wait_for(pilot, lambda: app.session.model)
        await pilot.press("f7")
        await wait_long(pilot, begun.is_set)
        assert drawn(app)
        await pilot.press("m")
        await wait_long(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        assert options(app)[0].startswith("other:f16 ")
        await pilot.press("enter")
        await wait_long(pilot, lambda: isinstance(app.screen, CompressScreen) and options(app))
        gate.set()
        await settle(pilot)
        assert "Compress other:f16" in str(app.screen.query_one("#compress-title").render())
        assert not any("KL" in option for option in options(app))
        assert drawn(app) == ""


async def test_hostile_names_are_drawn_as_text(make_app, measured, home, settle):
    rows = [made_up_row(text[:40], 10**8 + n, 0.01, type="q4_0") for n, text in enumerate(HOSTILE)]
    put_report(home, measured, rows=rows)
    app = make_app(memory_gb=1)
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot, settle)
        await wait_for(pilot, lambda: drawn(app))
        await settle(pilot)
        assert_clean(app)


async def test_a_key_measures(make_app, tiny, home, settle, monkeypatch):
    monkeypatch.setattr("quant.report.job.USUAL_TYPES", ("q4_0",))
    app = make_app(memory_gb=1)
    app.session.jobs = JobStore(home)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, settle)
        await pilot.press("r")
        await wait_for(pilot, lambda: app.screen.query_one(JobBar).display)
        await pilot.press("r")  # the same job is joined
        await wait_long(pilot, lambda: "Measured." in notices(app))
        assert len([job for job in JobStore(home).list() if job.spec.kind == "report"]) == 1
        assert "Recommended: q4_0" in notices(app) or "comes nearest" in notices(app)
        assert kept_report(home, tiny.resolve("tiny")).row_of_type("q4_0")
        await wait_long(pilot, lambda: app.screen.check_action("plot", ()))  # the report is read, in a thread
        await pilot.press("p")
        await wait_long(pilot, lambda: "q4_0" in drawn(app))


async def test_a_plan_for_a_budget_is_shown_before_it_is_made(make_app, tiny, home, settle):
    app = make_app(memory_gb=1, ctx=256)
    app.session.jobs = JobStore(home)
    async with app.run_test(size=(80, 24)) as pilot:
        await opened(pilot, settle)

        async def ask(size):
            await pilot.press("b")
            await wait_for(pilot, lambda: isinstance(app.screen, LineDialog))
            assert "Enter plans for it" in str(app.screen.query_one(".dialog-hint").render())
            app.screen.query_one(Input).value = size
            await pilot.press("enter")

        await ask("plenty")
        await wait_for(pilot, lambda: "is no size" in notices(app))
        assert isinstance(app.screen, CompressScreen)
        await ask("80MB")
        await wait_long(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        said = " ".join(str(label.render()) for label in app.screen.query("Static"))
        assert "Make tiny:fit-80mb by this plan?" in said
        assert "80.0 MB leave beside 256 tokens of context" in said
        assert "Predicted KL" in said
        await pilot.press("escape")
        await settle(pilot)
        assert len(tiny.list()) == 1, "no is what Escape means"
        await ask("80MB")
        await wait_long(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_long(pilot, lambda: "tiny:fit-80mb is here. F6 shows it." in notices(app))
        assert tiny.resolve("tiny:fit-80mb").extra["recipe"]["fit"] == 80_000_000
        await ask("80MB")
        await wait_for(pilot, lambda: "tiny:fit-80mb is here already" in notices(app))


async def planned(pilot):
    await wait_for(pilot, lambda: pilot.app.session.model)
    await pilot.press("f7")
    await wait_long(
        pilot,
        lambda: (
            isinstance(pilot.app.screen, CompressScreen)
            and options(pilot.app)
            and not any("~" in option for option in options(pilot.app))
        ),
    )


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
def test_snapshot(snap_compare, make_app, measured, size):
    assert snap_compare(make_app(memory_gb=1), run_before=planned, terminal_size=size)


@pytest.mark.parametrize("size", [(80, 24)], ids=["80x24"])
def test_snapshot_of_the_plot(snap_compare, make_app, measured, size):
    async def look(pilot):
        await planned(pilot)
        await pilot.press("p")
        await wait_for(pilot, lambda: drawn(pilot.app))

    assert snap_compare(make_app(memory_gb=1, theme="localllm-light"), run_before=look, terminal_size=size)
