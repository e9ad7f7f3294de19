"""Makes the home of this version that later versions must be able to open.

    python -m tests.homes.make tests/homes/VERSION.tar.xz

Once a version, before it is changed; what is there stays as it is. The home holds what a person would have after some
days: models and what was made of them, an adapter, trainings that ended and one that was cancelled, conversations with
branches, keys, settings. Where files name the home, they say @HOME@ instead.
"""

import contextlib
import json
import sys
import tarfile
import tempfile
import time
from io import BytesIO
from pathlib import Path

from app.cli.main import main as localllm
from localllm.conversations import ConversationStore
from localllm.jobs.store import JobStore
from localllm.paths import Home
from tests.fakes.hf_models import write_hf_model

PLACE = "@HOME@"
# Caches, locks, logs and what runs: a home is whole without them.
_LEFT_OUT = ("native", "locks", "server", "logs", "snapshots")
_TRAINING = ["--rank", "2", "--batch-tokens", "64", "--learning-rate", "5e-3"]


def fill(home: Home) -> None:
    """Use the program as a person would."""

    def run(*words: str) -> None:
        code = localllm(["--home", str(home.root), *words])
        assert code == 0, words

    rows = home.root / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"Say {i}. ", "completion": f"It is {i}."}) + "\n" for i in range(24))
    )
    with tempfile.TemporaryDirectory() as work:
        run("pull", str(write_hf_model(Path(work) / "tiny", "llama")), "--as", "tiny:hf")
    run("quantize", "tiny:hf", "--to", "q8_0", "--imatrix", "none")
    run("models", "export", "tiny:hf", "--to", "gguf:f16")
    train = ["finetune", "tiny:hf", "--data", str(rows), *_TRAINING]
    run(*train, "--as", "learnt", "--steps", "6")
    run("models", "export", "tiny:hf+learnt", "--to", "gguf:f16", "--as", "tiny-learnt", "--ignore-gate")
    _cancelled_training(home, rows)
    run("keys", "add", "laptop", "--scope", "chat")
    home.settings_file.write_text("gpu_layers = 0\nmemory_gb = 8.0\n")
    _conversations(home)


def _cancelled_training(home: Home, rows: Path) -> None:
    from finetune.jobs import train_spec  # the version before corridors; a later maker says where it is then
    from finetune.recipe import make_recipe
    from localllm.models.store import ModelStore

    fields = {"rank": 2, "batch_tokens": 64, "learning_rate": 5e-3, "samples": 0, "patience": 0}
    fields |= {"steps": 120, "save_every": 5, "eval_every": 50, "name": "half"}
    jobs = JobStore(home)
    job = jobs.create(train_spec(ModelStore(home), make_recipe({"model": "tiny:hf", "data": [str(rows)], **fields})))
    jobs.start(job)
    history = job.out / "history.jsonl"
    while not history.exists() or history.read_text().count("\n") < 7:
        time.sleep(0.02)
    jobs.cancel(job)
    while job.alive:
        time.sleep(0.05)


def _conversations(home: Home) -> None:
    with contextlib.closing(ConversationStore(home.database)) as store:
        talk = store.create("Gravity", "tiny:q8_0", "Answer briefly.")
        asked = store.append(talk.id, None, "user", "What is gravity? ¿Qué? 重力")
        answer = store.append(talk.id, asked.id, "assistant", "", status="streaming", model="tiny:q8_0")
        store.finish(
            answer.id, "done", "Gravity is a force.\n\n```py\nprint(9.81)\n```", usage={"completion_tokens": 9}
        )
        other = store.append(talk.id, asked.id, "assistant", "", status="streaming", model="tiny:q8_0")
        store.finish(other.id, "error", "Gravi", error="The process that held the model ended.")
        store.append(talk.id, None, "user", "What is light?")
        store.set_active(answer.id)
        gone = store.create("Deleted", "tiny:q8_0")
        store.append(gone.id, None, "user", "Forget this.")
        store.delete(gone.id)


def pack(home: Home, target: Path) -> None:
    """Write the home's files, with their times set to nothing."""
    with tarfile.open(target, "w:xz", preset=9) as archive:
        for path in sorted(home.root.rglob("*")):
            name = path.relative_to(home.root)
            if not path.is_file() or path.is_symlink() or name.parts[0] in _LEFT_OUT or path.suffix == ".lock":
                continue
            data = path.read_bytes().replace(str(home.root).encode(), PLACE.encode())
            info = tarfile.TarInfo(str(name))
            info.size, info.mode = len(data), path.stat().st_mode & 0o777
            archive.addfile(info, BytesIO(data))


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as directory:
        made = Home(Path(directory).resolve() / "home").ensure()
        fill(made)
        pack(made, Path(sys.argv[1]))
