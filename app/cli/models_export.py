"""``localllm models export MODEL --to FORM``: the same model in another form."""

import argparse
import json
from dataclasses import asdict
from typing import Any

from app.cli.output import human_bytes
from localllm.paths import Home

_FORMS = """forms:
  gguf:f16 | gguf:bf16 | gguf:f32 | gguf:q8_0   one file, for llama.cpp and what is built on it
  hf | hf:f16 | hf:bf16 | hf:f32                a directory, for transformers
  mlx | mlx:f16 | mlx:bf16 | mlx:f32            the same directory, for mlx-lm

A model with an adapter (BASE+ADAPTER) becomes one model, in any of these forms, in any type that llama.cpp quantizes to
(q4_k_m), or packed as its base is (mlx:4bit). It is kept only if it predicts what was trained; the figures are shown.

Weights that were quantized are unpacked. Nothing is asked of a network, and the model that it is made from stays.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _FORMS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="MODEL", help="name or name:variant, or BASE+ADAPTER")
    parser.add_argument("--to", required=True, metavar="FORM", help="gguf:TYPE, hf[:TYPE] or mlx[:TYPE]")
    parser.add_argument(
        "--as", dest="as_name", default="", metavar="NAME", help="what to call it: name or name:variant"
    )
    parser.add_argument("--ignore-gate", action="store_true", help="keep it even if it predicts something else")
    parser.add_argument("--detach", action="store_true", help="do not wait: it goes on as a job, see `jobs`")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the manifest as JSON")


def run(args: argparse.Namespace, home: Home) -> int:
    """Export, and print one line about the result."""
    # Deferred: the formats bring numpy (100 ms), which `models list` does not need.
    from app.cli.follow_job import run_job
    from finetune import export_job
    from localllm.models.store import ModelStore
    from quant.jobs import export_spec

    def show(result: dict[str, Any], state: str = "ready") -> None:
        if args.json:
            print(json.dumps({**result["manifest"], "state": state}, ensure_ascii=False))
        else:
            size = sum(file["size"] for file in result["manifest"]["files"])
            print(f"{result['name']}  {human_bytes(size)}  {state}")

    store = ModelStore(home)
    if "+" in args.name:
        spec, found = export_job.export_spec(store, args.name, args.to, args.as_name, ignore_gate=args.ignore_gate)
    else:
        spec, found = export_spec(store, args.name, args.to, args.as_name)
    if found is not None:
        show({"name": str(found.model_name), "manifest": asdict(found)}, "already here")
        return 0
    return run_job(home, spec, detach=args.detach, show=show)
