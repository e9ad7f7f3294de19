"""``localllm pull`` and ``localllm models``: in this process where that is enough, else as real processes."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from app.cli.main import main
from app.cli.models import human_count
from localllm.jobs.store import JobStore
from localllm.models.store import ModelStore
from localllm.snapshots import ensure_directory, snapshot_directory
from tests.fakes.gguf_files import write_tiny_gguf, write_tiny_lora
from tests.fakes.hub import FakeHub, FakeRepository

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_tiny_gguf(tmp_path / "tiny.F16.gguf")


def start(hub: FakeHub, *words: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-P", "-m", "app", *words],
        cwd=ROOT,
        env={**os.environ, "HF_ENDPOINT": hub.url, "PYTHONPATH": str(ROOT)},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_until(true: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, "it did not happen within 30 s"
        time.sleep(0.02)


def test_adapters_are_pulled_listed_shown_and_removed(home, tiny, tmp_path, capsys):
    lora = write_tiny_lora(tmp_path / "pirate.gguf", tiny)
    assert main(["pull", str(tiny)]) == main(["pull", str(lora)]) == 0
    out, err = capsys.readouterr()
    assert out.splitlines()[1].split() == ["+pirate", *out.splitlines()[1].split()[1:-1], "ready"]
    assert "Use it as tiny+pirate." in err
    assert main(["pull", str(lora), "--as", "pirate"]) == 0
    assert capsys.readouterr().out.endswith("already here\n")

    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].split() == ["ADAPTER", "SIZE", "RANK", "FOR", "FORMS", "SOURCE"]
    assert lines[4].split()[0] == "+pirate"
    assert lines[4].split()[3:] == ["4", "tiny", "gguf", str(lora)]
    assert main(["models", "--json"]) == 0
    records = json.loads(capsys.readouterr().out)
    assert [(one["kind"], one["name"]) for one in records] == [("model", "tiny"), ("adapter", "pirate")]

    for name in ("pirate", "+pirate"):
        assert main(["models", "show", name]) == 0
        assert "rank          4" in capsys.readouterr().out
    assert main(["models", "show", "pirate", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["base"] == "tiny"
    assert main(["models", "rm", "-y", "+pirate", "pirate", "tiny"]) == 0
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == ["+pirate", "tiny:f16"]
    assert main(["models", "rm", "-y", "+pirate"]) == 1
    assert "no adapter" in capsys.readouterr().err


def test_pull_list_show_and_remove(home, tiny, capsys):
    assert main(["pull", str(tiny)]) == 0
    out, err = capsys.readouterr()
    assert out == f"tiny:f16  {tiny.stat().st_size / 1000:.1f} kB  ready\n"
    assert main(["pull", str(tiny), "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["name"] == "tiny"

    assert main(["models"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "SIZE", "PARAMS", "QUANT", "CONTEXT", "SOURCE"]
    assert lines[1].split() == ["tiny:f16", "81.0", "kB", "36.2K", "F16", "256", str(tiny)]
    for words in (["models", "--json"], ["models", "list", "--json"], ["models", "--json", "list"]):
        assert main(words) == 0
        assert [model["name"] for model in json.loads(capsys.readouterr().out)] == ["tiny"]

    assert main(["models", "show", "tiny"]) == 0
    shown = capsys.readouterr().out
    assert "architecture  llama" in shown
    assert "sha256" in shown
    assert main(["models", "show", "tiny", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["path"] == "tiny.F16.gguf"

    store = ModelStore(home)
    kept = snapshot_directory(home, store.resolve("tiny").files[0].sha256)
    ensure_directory(kept)
    (kept / "x.kv").touch()

    assert main(["models", "rm", "tiny"]) == 2
    assert kept.exists()
    assert "--yes" in capsys.readouterr().err
    assert main(["models", "rm", "tiny", "tiny:f16", "--yes"]) == 0
    assert "another link" in capsys.readouterr().out
    assert tiny.exists()
    assert not kept.exists()
    assert main(["models"]) == 0
    out, err = capsys.readouterr()
    assert (out, "localllm pull starter" in err) == ("", True)


def test_removing_asks_on_a_terminal(home, tiny, capsys, monkeypatch):
    main(["pull", str(tiny)])
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stdin.readline", lambda: "n\n", raising=False)
    assert main(["models", "rm", "tiny"]) == 1
    monkeypatch.setattr("sys.stdin.readline", lambda: "y\n", raising=False)
    assert main(["models", "rm", "tiny"]) == 0
    assert ModelStore(home).list() == []


def test_removing_never_guesses_a_variant_and_takes_damaged_ones(home, tiny, capsys):
    main(["pull", str(tiny), "--as", "m:a"])
    main(["pull", str(tiny), "--as", "m:b"])
    assert main(["models", "rm", "m", "--yes"]) == 2
    assert "a, b" in capsys.readouterr().err
    (home.models / "m" / "b" / "manifest.json").write_text("{")
    assert main(["models"]) == 0
    assert "m:b is damaged" in capsys.readouterr().err
    assert main(["models", "rm", "m:b", "-y"]) == 0
    assert main(["models", "rm", "m:b", "-y"]) == 1
    assert [model.variant for model in ModelStore(home).list()] == ["a"]


def test_removing_a_reference_leaves_the_file(home, tiny, tmp_path, capsys, monkeypatch):
    import hashlib

    data = tiny.read_bytes()
    digest = hashlib.sha256(data).hexdigest()
    root = tmp_path / "ollama"
    manifest = root / "manifests" / "registry.ollama.ai" / "library" / "t" / "1b"
    manifest.parent.mkdir(parents=True)
    layer = {"mediaType": "application/vnd.ollama.image.model", "digest": f"sha256:{digest}", "size": len(data)}
    manifest.write_text(json.dumps({"layers": [layer]}))
    (root / "blobs").mkdir()
    (root / "blobs" / f"sha256-{digest}").write_bytes(data)
    monkeypatch.setenv("OLLAMA_MODELS", str(root))
    assert main(["pull", "ollama:t:1b"]) == 0
    capsys.readouterr()
    assert main(["models", "rm", "t", "--yes"]) == 0
    assert "only the reference" in capsys.readouterr().out
    assert (root / "blobs" / f"sha256-{digest}").exists()


def test_nothing_hostile_in_a_manifest_reaches_the_terminal(home, tiny, capsys):
    main(["pull", str(tiny)])
    path = home.models / "tiny" / "f16" / "manifest.json"
    record = json.loads(path.read_text())
    record.update(source="\x1b]0;owned\x07", licence="\x1b[2J", note="\u202eodd")
    path.write_text(json.dumps(record))
    capsys.readouterr()
    main(["models"])
    main(["models", "show", "tiny"])
    out, err = capsys.readouterr()
    assert not set("\x1b\x07\u202e") & set(out + err)
    assert "note" in out


@pytest.fixture
def slow_hub(tiny: Path) -> FakeHub:
    """A hub that holds downloads back until its gate is opened."""
    files = {"tiny-Q4_K_M.gguf": tiny.read_bytes()}
    return FakeHub({"acme/tiny-GGUF": FakeRepository(files)})


def test_killed_in_the_middle_then_pulled_again(home, slow_hub, tiny):
    with slow_hub as hub:
        hub.cuts["tiny-Q4_K_M.gguf"] = [30_000]
        hub.gate.clear()
        first = start(hub, "pull", "acme/tiny-GGUF")
        wait_until(lambda: len(hub.downloads()) == 1)
        hub.gate.set()
        # After the cut it pauses before it asks again: 30 000 bytes are on the disk then.
        wait_until(lambda: any(part.stat().st_size == 30_000 for part in home.partial.rglob("*.part")))
        first.kill()
        first.communicate()
        (job,) = JobStore(home).list()
        assert job.alive, "the job outlives the command that was killed"
        os.killpg(job.status().pid, signal.SIGKILL)
        wait_until(lambda: not job.alive)
        assert ModelStore(home).list() == []
        hub.requests.clear()
        again = start(hub, "pull", "acme/tiny-GGUF")
        out, err = again.communicate(timeout=60)
        assert (again.returncode, out.split()[0]) == (0, "tiny:q4_k_m"), err
        assert [ranged for _, ranged in hub.downloads()] == ["bytes=30000-"]
    store = ModelStore(home)
    assert store.file(store.resolve("tiny")).read_bytes() == tiny.read_bytes()
    assert not list(home.partial.iterdir())


def test_two_processes_fetch_once(home, slow_hub):
    with slow_hub as hub:
        hub.gate.clear()
        first = start(hub, "pull", "acme/tiny-GGUF")
        wait_until(lambda: len(hub.downloads()) == 1)
        second = start(hub, "pull", "hf:acme/tiny-GGUF")
        assert second.stderr
        assert "waiting" in second.stderr.readline()
        hub.gate.set()
        assert first.communicate(timeout=60)[0].strip().endswith("ready")
        assert second.communicate(timeout=60)[0].strip().endswith("already here")
        assert len(hub.downloads()) == 1


def test_a_pull_that_is_not_waited_for(home, slow_hub, capsys, monkeypatch):
    with slow_hub as hub:
        hub.gate.clear()
        monkeypatch.setenv("HF_ENDPOINT", hub.url)
        assert main(["pull", "acme/tiny-GGUF", "--detach"]) == 0
        out, err = capsys.readouterr()
        job = JobStore(home).get(out.strip())
        assert f"jobs watch {job.id}" in err
        wait_until(lambda: len(hub.downloads()) == 1)
        hub.gate.set()
        wait_until(lambda: not job.alive)
    assert job.status().result["name"] == "tiny:q4_k_m"
    assert main(["pull", "acme/tiny-GGUF"]) == 0
    assert capsys.readouterr().out.endswith("already here\n")
    assert len(JobStore(home).list()) == 1, "what is here needs no job"


@pytest.mark.parametrize(("number", "code"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_interrupted(home, slow_hub, number, code):
    with slow_hub as hub:
        hub.gate.clear()
        process = start(hub, "pull", "acme/tiny-GGUF")
        wait_until(lambda: len(hub.downloads()) == 1)
        process.send_signal(number)
        _, err = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in err
    assert ModelStore(home).list() == []
    (job,) = JobStore(home).list()
    assert (job.alive, job.status().state) == (False, "cancelled")


def test_a_disk_that_fills_up_leaves_nothing(home, slow_hub):
    command = [sys.executable, "-P", "-m", "app", "pull", "acme/tiny-GGUF"]
    with slow_hub as hub:
        # A limit on the size of files stands in for a full disk: the system refuses the write in the same way.
        done = subprocess.run(
            ["sh", "-c", 'ulimit -f 40; exec "$@"', "sh", *command],  # 40 blocks of 512 bytes (bash: 1024)
            cwd=ROOT,
            env={**os.environ, "HF_ENDPOINT": hub.url, "PYTHONDONTWRITEBYTECODE": "1"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    assert done.returncode == 1
    assert "The disk is full" in done.stderr
    assert "Traceback" not in done.stderr
    assert not list(home.partial.iterdir())
    assert not list(home.models.iterdir())


@pytest.mark.parametrize(("n", "text"), [(0, "0"), (999, "999"), (134_515_008, "135M"), (1_711_376_384, "1.71B"),
                                         (999_999_999, "1B"), (70_553_706_496, "70.6B")])  # fmt: skip
def test_numbers_of_weights(n, text):
    assert human_count(n) == text
