"""The Models screen, over a real store and real jobs."""

import asyncio

import pytest
from textual.widgets import Input

from app.tui.screens.chat import ChatScreen
from app.tui.screens.dialogs import ChoiceDialog, ConfirmDialog, LineDialog
from app.tui.screens.help import HelpScreen
from app.tui.screens.jobs import JobsScreen
from app.tui.screens.models import ModelsScreen
from app.tui.widgets.job_bar import JobBar
from localllm.jobs.record import JobSpec
from localllm.jobs.store import JobStore
from localllm.models.manifest import MANIFEST, Parent
from localllm.models.names import ModelName
from localllm.models.store import ModelStore
from tests.app.tui.test_chat import notices, wait_for
from tests.app.tui.test_hostile import HOSTILE, assert_clean
from tests.app.tui.test_library import put_adapter
from tests.app.tui.test_windows import options
from tests.fakes.client import FakeClient
from tests.fakes.gguf_files import write_tiny_gguf
from tests.fakes.hf_models import write_hf_model
from tests.fakes.models import put_model


async def wait_long(pilot, condition):
    """For what a process of its own does."""
    for _ in range(1200):
        if condition():
            return
        await pilot.pause(0.05)
    raise AssertionError(f"it did not happen; told: {notices(pilot.app)}")


async def opened(pilot, settle, n_rows):
    await settle(pilot)
    await pilot.press("f6")
    await wait_for(pilot, lambda: isinstance(pilot.app.screen, ModelsScreen) and len(options(pilot.app)) == n_rows)
    await settle(pilot)


def facts(app):
    return str(app.screen.query_one("#library-facts").render())


def bar(app):
    return app.screen.query_one(JobBar)


async def test_nothing_yet_and_back(make_app, home, settle):
    app = make_app()
    async with app.run_test() as pilot:
        await opened(pilot, settle, 0)
        assert "Press p" in facts(app)
        await pilot.press("d", "e", "enter")
        assert isinstance(app.screen, ModelsScreen)
        await pilot.press("f1")
        assert isinstance(app.screen, HelpScreen)
        await pilot.press("escape", "f5")
        await settle(pilot)
        assert isinstance(app.screen, JobsScreen)
        await pilot.press("f6")
        await settle(pilot)
        assert isinstance(app.screen, ModelsScreen)
        assert sum(isinstance(screen, ModelsScreen) for screen in app.screen_stack) == 1
        await pilot.press("f6")
        await settle(pilot)
        assert isinstance(app.screen, ChatScreen)


async def test_facts_follow_the_highlight(app, home, settle):
    parent = Parent("smollm2-135m:q4_1", "0" * 64, "quantize smollm2-135m:q4_1 --to q2_k")
    put_model(
        home, "smollm2-135m", "q2_k", parent=parent, licence="Apache-2.0", n_ctx_train=8192, parameters=135_000_000
    )
    async with app.run_test() as pilot:
        await opened(pilot, settle, 2)
        assert options(app)[0].startswith("▸ smollm2-135m:q4_1 ")
        assert options(app)[1].startswith("  └ smollm2-135m:q2_k ")
        assert "made from" not in facts(app)
        await pilot.press("j")
        await wait_for(pilot, lambda: "made from" in facts(app))
        assert "--to q2_k" in facts(app)
        assert "135M parameters" in facts(app)
        assert "Apache-2.0" in facts(app)


async def test_chat_with_another(make_app, model, home, settle):
    put_model(home, "other", "q8_0")
    client = FakeClient()
    app = make_app(client)
    async with app.run_test() as pilot:
        await settle(pilot)
        await pilot.press("f5")
        await opened(pilot, settle, 2)
        await pilot.press("up", "enter")
        await wait_for(pilot, lambda: isinstance(app.screen, ChatScreen))
        await settle(pilot)
        assert app.session.model == "other:q8_0"
        assert client.loaded[-1] == "other:q8_0"


async def test_delete_asks_and_tells(make_app, home, settle):
    put_model(home, "base", "f16", size=4)
    made = put_model(home, "small", "q8_0", size=4, parent=Parent("base:f16", "0" * 64, "quantize"))
    app = make_app(model="base:f16")
    async with app.run_test() as pilot:
        await opened(pilot, settle, 2)
        await pilot.press("d")
        await wait_for(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        said = " ".join(str(label.render()) for label in app.screen.query("Static"))
        assert "base:f16" in said
        assert "4 B are freed" in said
        assert "It is loaded" in said
        assert "Made from it, and kept: small:q8_0" in said
        await pilot.press("enter")  # no is what Enter means
        await settle(pilot)
        assert ModelStore(home).get(ModelName("base", "f16"))
        await pilot.press("d")
        await wait_for(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_for(pilot, lambda: "4 B freed" in notices(app))
        await wait_for(pilot, lambda: len(options(app)) == 1)
        assert ModelStore(home).list() == [made]
        await pilot.press("escape")
        await settle(pilot)
        assert app.session.model == "small:q8_0", "what the chat used is gone"


async def test_delete_while_it_loads(make_app, model, home, settle):
    client = FakeClient(load_gate=asyncio.Event())
    app = make_app(client)
    async with app.run_test() as pilot:
        await wait_for(pilot, lambda: app.session.model == "smollm2-135m:q4_1" and app.session._client)
        assert not app.session.ready
        await pilot.press("f6")
        await wait_for(pilot, lambda: isinstance(app.screen, ModelsScreen) and len(options(app)) == 1)
        await pilot.press("d")
        await wait_for(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        assert "It is loaded" in " ".join(str(label.render()) for label in app.screen.query("Static"))
        await pilot.press("y")
        await wait_for(pilot, lambda: not options(app))
        client.load_gate.set()
        await pilot.press("escape")
        await settle(pilot)
        assert app.session.model == ""
        assert "No model is here yet" in notices(app)


async def test_deleted_by_another_window(app, home, settle):
    async with app.run_test() as pilot:
        await opened(pilot, settle, 1)
        await pilot.press("d")
        await wait_for(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        store = ModelStore(home)
        store.remove(store.list()[0])
        await pilot.press("y")
        await wait_for(pilot, lambda: "is gone already" in notices(app))
        await wait_for(pilot, lambda: not options(app))


async def test_a_damaged_one_can_be_deleted(app, home, settle):
    (home.models / "smollm2-135m" / "q4_1" / MANIFEST).write_text("{")
    async with app.run_test() as pilot:
        await opened(pilot, settle, 1)
        assert "damaged" in options(app)[0]
        await pilot.press("enter")
        await wait_for(pilot, lambda: "smollm2-135m:q4_1 is damaged" in notices(app))
        await pilot.press("d")
        await wait_for(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        await pilot.press("y")
        await wait_for(pilot, lambda: not options(app))
        assert not (home.models / "smollm2-135m").exists()


async def test_pull_then_export_by_real_jobs(make_app, jobs, home, settle, tmp_path):
    source = write_hf_model(tmp_path / "tiny", "llama")
    app = make_app()
    app.session.jobs = JobStore(home)  # its workers run the real entries
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot, settle, 0)
        await pilot.press("p")
        assert isinstance(app.screen, LineDialog)
        assert "Enter fetches it" in str(app.screen.query_one(".dialog-hint").render())
        app.screen.query_one(Input).value = str(source)
        await pilot.press("enter")
        await wait_long(pilot, lambda: len(options(app)) == 1)
        name = str(ModelStore(home).list()[0].model_name)
        await wait_for(pilot, lambda: f"{name} is here" in notices(app))
        await settle(pilot)
        await pilot.press("e")
        await wait_for(pilot, lambda: isinstance(app.screen, ChoiceDialog))
        forms = options(app)
        assert any(form.startswith("gguf:q8_0 ") for form in forms)
        await pilot.press(*["down"] * next(i for i, form in enumerate(forms) if form.startswith("gguf:q8_0 ")), "enter")
        await wait_for(pilot, lambda: isinstance(app.screen, ModelsScreen))
        await wait_long(pilot, lambda: len(options(app)) == 2)
        made = next(model for model in ModelStore(home).list() if model.format == "gguf")
        assert made.parent.name == name
        assert options(app)[1].startswith(f"  └ {made.model_name} ")
        assert [job.spec.kind for job in jobs.list()] == ["pull", "export"]
        await settle(pilot)
        await pilot.press("p")
        app.screen.query_one(Input).value = str(source)
        await pilot.press("enter")
        await wait_long(pilot, lambda: notices(app).count(f"{name} is here") == 2)
        assert len(options(app)) == 2, "nothing is here twice"


async def test_what_cannot_be_pulled_is_told(app, settle, tmp_path):
    async with app.run_test() as pilot:
        await opened(pilot, settle, 1)
        await pilot.press("p")
        app.screen.query_one(Input).value = "\x1b[31m::"
        await pilot.press("enter")
        await wait_for(pilot, lambda: any(notice.severity == "error" for notice in app._notifications))
        assert "\x1b" not in notices(app)
        assert isinstance(app.screen, ModelsScreen)


async def test_a_model_with_an_adapter_is_marked(make_app, home, settle):
    put_model(home, "a", "q4_1")
    put_model(home, "b", "q4_1")
    put_adapter(home, "poems", "b")
    app = make_app()
    async with app.run_test() as pilot:
        await settle(pilot)
        app.session.model = "b:q4_1+poems"
        await opened(pilot, settle, 3)
        assert [option[:2] for option in options(app)] == ["  ", "▸ ", "▸ "]
        assert app.screen.query_one("#library").highlighted == 1


async def test_a_failing_job_is_told(app, start, home, settle):
    job = start("held", title="x to y", name="gate")
    spec = JobSpec("export", "x \x1b[2J to y", "tests.fakes.job_entries:fail", heavy=False)
    async with app.run_test() as pilot:
        await opened(pilot, settle, 1)
        assert not bar(app).display, "a job of another kind is no business of this screen"
        app.screen.in_thread(lambda: app.screen._start(spec))
        await wait_long(pilot, lambda: "No room for the model. Free some." in notices(app))
        assert "\x1b" not in notices(app)
        await wait_for(pilot, lambda: not bar(app).display)
    (home.root / "gate").touch()
    assert job.id


async def test_the_bar_is_found_again(make_app, model, jobs, home, settle):
    spec = JobSpec("pull", "acme/tiny", "tests.fakes.job_entries:held", {"name": "gate"}, heavy=False)
    job = jobs.create(spec)
    jobs.start(job)

    async def look():
        app = make_app()
        async with app.run_test() as pilot:
            await opened(pilot, settle, 1)
            await wait_long(pilot, lambda: bar(app).display and "50%" in str(bar(app).render()))
            assert "pull acme/tiny" in str(bar(app).render())
            await pilot.press("f5")
            await wait_for(pilot, lambda: isinstance(app.screen, JobsScreen) and len(options(app)) == 1)

    await look()
    await look()  # the app was left, and has come back
    (home.root / "gate").touch()


async def test_hostile_names_are_drawn_as_text(make_app, home, settle):
    nasty = "".join(HOSTILE)
    put_model(home, "evil", "q4_1", licence=nasty, architecture=nasty, parent=Parent(nasty, "0" * 64, nasty))
    directory = home.models / "a\x1b[2J" / "[bold]x\u202e"
    directory.mkdir(parents=True)
    app = make_app()
    async with app.run_test(size=(120, 40)) as pilot:
        await opened(pilot, settle, 2)
        assert_clean(app)
        await pilot.press("down")
        await settle(pilot)
        assert_clean(app)
        await pilot.press("d")
        await wait_for(pilot, lambda: isinstance(app.screen, ConfirmDialog))
        assert_clean(app)
        await pilot.press("y")
        await settle(pilot)
        assert_clean(app)
        assert not directory.exists()


@pytest.fixture
def full(make_app, home, tmp_path):
    original = Parent("smollm2-135m:f16", "0" * 64, "quantize smollm2-135m:f16 --to q4_k_m --as smollm2-135m:q4_k_m")
    more = {"licence": "Apache-2.0", "n_ctx_train": 8192, "parameters": 134_515_008, "architecture": "llama"}
    put_model(home, "smollm2-135m", "f16", 270_885_024, **more)
    put_model(home, "smollm2-135m", "q4_k_m", 105_454_432, parent=original, created="2026-11-20T10:00:00+00:00", **more)
    tuned = Parent("smollm2-135m:f16", "0" * 64, "fuse smollm2-135m:f16 +poems")
    put_model(home, "smollm2-poems", "f16", 270_885_024, parent=tuned, **more)
    last = Parent("smollm2-poems:f16", "0" * 64, "quantize smollm2-poems:f16 --to iq3_xxs")
    put_model(home, "smollm2-poems", "iq3_xxs", 71_000_000, parent=last, **more)
    put_model(
        home, "qwen3-4b", "q4_k_m", 2_497_280_256, architecture="qwen3", n_ctx_train=40960, parameters=4_022_468_096
    )
    directory = home.models / "smollm2-135m" / "q4_k_m" / "model.gguf"
    directory.unlink()
    write_tiny_gguf(directory)
    return make_app(memory_gb=1, model="smollm2-135m:q4_k_m")


@pytest.mark.parametrize("size", [(80, 24), (120, 40)], ids=["80x24", "120x40"])
@pytest.mark.parametrize("theme", ["localllm-dark", "localllm-light"])
def test_snapshot(snap_compare, full, size, theme):
    full.theme = theme

    async def look(pilot):
        await wait_for(pilot, lambda: full.session.model)
        await pilot.press("f6")
        await wait_for(pilot, lambda: isinstance(full.screen, ModelsScreen) and len(options(full)) == 5)
        await wait_for(pilot, lambda: "made from" in facts(full))

    assert snap_compare(full, run_before=look, terminal_size=size)


@pytest.mark.parametrize("size", [(80, 24)], ids=["80x24"])
def test_snapshot_of_the_question(snap_compare, full, size):
    async def look(pilot):
        await wait_for(pilot, lambda: full.session.model)
        await pilot.press("f6")
        await wait_for(pilot, lambda: isinstance(full.screen, ModelsScreen) and len(options(full)) == 5)
        await pilot.press("k", "d")
        await wait_for(pilot, lambda: isinstance(full.screen, ConfirmDialog))

    assert snap_compare(full, run_before=look, terminal_size=size)
