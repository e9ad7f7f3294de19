"""Work for jobs of tests; each waits for files, never for a time."""

import os
import subprocess
import sys
import time
from pathlib import Path

from localllm.errors import DiskFullError
from localllm.jobs.events import Checkpoint, Message, Progress, Step
from tests.fakes.models import put_model


def _wait_for(path):
    while not path.exists():
        time.sleep(0.01)


def add(context):
    context.emit(Message("info", "Grüße, 模型 \udce9"))
    return {
        "sum": context.arguments["a"] + context.arguments["b"],
        "cwd": str(Path.cwd()),
        "home": str(context.home.root),
    }


def make_files(context):
    """As a library does, which thinks of no modes."""
    (context.home.root / "kept" / "below").mkdir(parents=True)
    (context.home.root / "kept" / "below" / "mine.txt").write_text("mine")
    return {}


def fail(context):
    raise DiskFullError("No room for the model.", "Free some.")


def bug(context):
    return {}["missing"]


def no_json(context):
    return {"value": object()}


def die(context):
    os.abort()


def until_cancelled(context):
    """Takes steps until it is cancelled, then saves; goes on from there."""
    saved = context.out / "step"
    step = int(saved.read_text()) if context.arguments.get("resume") else 0
    while not (context.home.root / "finish").exists():
        step += 1
        context.emit(Step(step, 1000, {"loss": 1 / step}))
        if context.cancelled:
            saved.write_text(str(step))
            context.emit(Checkpoint(step, "out/step"))
            context.check_cancelled()
        time.sleep(0.01)
    return {"step": step}


def deaf(context):
    """Never looks whether it is cancelled, and has a child."""
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
    (context.out / "child").write_text(str(child.pid))
    child.wait()


def interruptible(context):
    (context.out / "here").touch()
    with context.interruptible():
        time.sleep(1000)


def forks(context):
    """Leaves a child that was forked without a new program."""
    pid = os.fork()
    if pid == 0:
        os.setsid()  # no part of the job's process group: it outlives the job
        _wait_for(context.home.root / "finish")
        os._exit(0)
    return {"child": pid}


def held(context):
    """Runs until the file named after its title exists."""
    context.emit(Progress("hold", 1, 2, context.arguments["name"]))
    while not (context.home.root / context.arguments["name"]).exists():
        context.check_cancelled()
        time.sleep(0.01)
    return {}


def fetch(context):
    """A pull without a network: puts the model of ``tests.fakes.models`` into the store when ``gate`` is there."""
    context.emit(Progress("download", 50, 100, "model.gguf", "B"))
    _wait_for(context.home.root / "gate")
    return {"name": str(put_model(context.home).model_name)}
