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

Weights that were quantized are unpacked. Nothing is asked of a network, and the model that it is made from stays.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _FORMS
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("name", metavar="MODEL", help="name or name:variant")
    parser.add_argument("--to", required=True, metavar="FORM", help="gguf:TYPE, hf[:TYPE] or mlx[:TYPE]")
    parser.add_argument(
        "--as", dest="as_name", default="", metavar="NAME", help="what to call it: name or name:variant"
    )
    parser.add_argument("--detach", action="store_true", help="do not wait: it goes on as a job, see `jobs`")
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print the manifest as JSON")


def run(args: argparse.Namespace, home: Home) -> int:
    """Export, and print one line about the result."""
    # Deferred: the formats bring numpy (100 ms), which `models list` does not need.
    from app.cli.follow_job import run_job
    from localllm.models.store import ModelStore
    from quant.jobs import export_spec

    def show(result: dict[str, Any], state: str = "ready") -> None:
        if args.json:
            print(json.dumps({**result["manifest"], "state": state}, ensure_ascii=False))
        else:
            size = sum(file["size"] for file in result["manifest"]["files"])
            print(f"{result['name']}  {human_bytes(size)}  {state}")

    spec, found = export_spec(ModelStore(home), args.name, args.to, args.as_name)
    if found is not None:
        show({"name": str(found.model_name), "manifest": asdict(found)}, "already here")
        return 0
    return run_job(home, spec, detach=args.detach, show=show)
