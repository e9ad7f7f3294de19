"""``localllm quantize MODEL``: a smaller model, by llama.cpp's types or MLX's; or a report on what they lose."""

import argparse
import json
import sys
from collections import Counter
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

from app.cli import quantize_report
from app.cli.output import human_bytes, print_table
from localllm.errors import UsageError
from localllm.paths import Home

if TYPE_CHECKING:
    from localllm.jobs.record import JobSpec
    from localllm.models.store import ModelStore
    from quant.llama_plan import QuantizePlan

_HELP = """examples:
  localllm quantize smollm2-135m --to q4_k_m
  localllm quantize mymodel:hf --to iq3_xxs --imatrix chats --as mymodel:small
  localllm quantize mymodel --to mlx-4bit
  localllm quantize qwen3-4b --fit 3GB --ctx 8192
  localllm quantize mymodel --like qwen3-4b:fit-3gb
  localllm quantize mymodel --to q4_k_m --override 'ffn_down=q6_k' --dry-run
  localllm quantize mymodel --report
  localllm quantize mymodel --report --types q8_0,q4_k_m,q2_k --chunks 8

MLX's types: mlx-2bit to mlx-8bit, mlx-mixed, mlx-mixed-3-6, mxfp4, nvfp4, mxfp8; and mlx-awq and mlx-dwq, which are
fitted to a text of our own.

The source may be GGUF, or a directory of Hugging Face's or MLX's form. The importance matrix says which inputs of each
matrix matter: it is measured on a text of our own (default), on your chats, or read from a file, and kept on this disk.

--fit measures once what each tensor loses at each type, then finds the types that lose least within that memory, KV
cache and context included. With --dry-run it stops at the plan. A plan serves the next model of the family, such as one
that was fine-tuned: `--like qwen3-4b:fit-3gb` gives each tensor the type that it has there, and `--fit 2GB --like
qwen3-4b` makes another plan from what was measured of qwen3-4b, so that no model runs.

--report makes no model. It measures the model beside its smaller forms, those that are here and those of --types, which
are made, measured and thrown away: size, bits over all parameters, perplexity, KL divergence from the model (mean, and
what 99 of 100 tokens stay below), how often both put the same token first, tokens a second reading a prompt and writing
an answer. What was measured is kept, so that a second report measures only what is new.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = _HELP
    parser.add_argument("model", metavar="MODEL", help="name or name:variant")
    parser.add_argument(
        "--to",
        metavar="TYPE",
        help="q8_0, q6_k, q5_k_m, q4_k_m, iq3_xxs, q2_k, … for GGUF; mlx-4bit, mlx-mixed, mxfp4, … for MLX",
    )
    parser.add_argument("--fit", metavar="SIZE", help="the best mix of types for that memory: 3GB, 800MB")
    parser.add_argument(
        "--like",
        default="",
        metavar="MODEL",
        help="the types of another model of the family, tensor by tensor; with --fit: what was measured of it",
    )
    parser.add_argument("--ctx", type=int, default=0, metavar="N", help="with --fit: tokens of context that fit too")
    quantize_report.configure(parser)
    parser.add_argument(
        "--imatrix", default="default", metavar="WHAT", help="default, chats, none, or a file: an imatrix or a text"
    )
    parser.add_argument(
        "--override",
        action="append",
        default=[],
        metavar="REGEX=TYPE",
        help="another type for the tensors whose name it is found in; the first that matches counts",
    )
    parser.add_argument(
        "--as", dest="as_name", default="", metavar="NAME", help="what to call it: name or name:variant"
    )
    parser.add_argument("--dry-run", action="store_true", help="print what would become of the tensors, and stop")
    parser.add_argument("--detach", action="store_true", help="do not wait: it goes on as a job, see `jobs`")
    parser.add_argument("--json", action="store_true", help="print the manifest, the plan or the report as JSON")


def run(args: argparse.Namespace, home: Home) -> int:
    """Quantize, and print one line about the result; or print a report."""
    # Deferred: the formats bring numpy (100 ms), which `--help` does not need.
    from app.cli.follow_job import run_job
    from localllm.models.store import ModelStore
    from quant.fit.job import FitWish, fit_spec
    from quant.quantize_job import QuantizeWish, quantize_spec

    _check(args)
    if args.report:
        return quantize_report.run(args, home)
    store = ModelStore(home)
    if args.fit:
        wanted = FitWish(args.model, args.fit, args.ctx, args.imatrix, args.as_name, args.dry_run, args.like)
        spec, found = fit_spec(store, wanted)
    else:
        wish = QuantizeWish(args.model, args.to or "", args.imatrix, tuple(args.override), args.as_name, args.like)
        spec, found = quantize_spec(store, wish)
        if args.dry_run:
            return _dry_run(store, spec, as_json=args.json)

    def show(result: dict[str, Any], state: str = "ready") -> None:
        if "manifest" not in result:
            print(json.dumps(result["plan"]) if args.json else result["summary"])
        elif args.json:
            print(json.dumps({**result["manifest"], "state": state}, ensure_ascii=False))
        else:
            size = sum(file["size"] for file in result["manifest"]["files"])
            print(f"{result['name']}  {human_bytes(size)}  {state}")

    if found is not None:
        show({"name": str(found.model_name), "manifest": asdict(found)}, "already here")
        return 0
    return run_job(home, spec, detach=args.detach, show=show)


def _check(args: argparse.Namespace) -> None:
    chosen = sum(map(bool, (args.to, args.fit, args.report)))
    if args.like and (args.to or args.report):
        raise UsageError("--like takes a model's types, or goes with --fit.", "Leave out --to and --report.")
    if chosen > 1 or not (chosen or args.like):
        raise UsageError(
            "Say either --to TYPE, --fit SIZE, --like MODEL or --report.", "For example --to q4_k_m, or --fit 3GB."
        )
    quantize_report.check(args)
    if args.fit and args.override:
        raise UsageError("--override goes with --to: --fit chooses the types itself.")
    if args.ctx < 0 or (args.ctx and not args.fit):
        raise UsageError("--ctx is a number of tokens, and goes with --fit.")


def _dry_run(store: "ModelStore", spec: "JobSpec", *, as_json: bool) -> int:
    from quant.child import never_cancelled, no_progress
    from quant.quantize_job import plan_quantize

    workspace = store.workspace
    key = workspace.key(f"plan {spec.arguments['name']}")
    with workspace.exclusive(key, lambda: print("Another process plans the same: waiting.", file=sys.stderr)) as work:
        try:
            plan = plan_quantize(store, spec, work, progress=no_progress, check_cancelled=never_cancelled)
        finally:
            workspace.discard(work)
    if as_json:
        print(json.dumps(asdict(plan), ensure_ascii=False))
    else:
        _print_plan(plan)
    return 0


def _print_plan(plan: "QuantizePlan") -> None:
    """One line for each role and type: what it becomes, why, and what it takes."""
    counts: Counter[tuple[str, str, str, str]] = Counter()
    sizes: Counter[tuple[str, str, str, str]] = Counter()
    for tensor in plan.tensors:
        key = (_role(tensor.name), tensor.from_type, tensor.to_type, tensor.reason)
        counts[key] += 1
        sizes[key] += tensor.n_bytes
    rows = [
        [role, str(counts[key]), f"{old} -> {new}" if old != new else new, human_bytes(sizes[key]), reason]
        for key in sorted(counts)
        for role, old, new, reason in [key]
    ]
    print_table(["tensor", "n", "type", "size", "why"], rows, right=(1, 3))
    print(f"{human_bytes(plan.n_bytes)}, {plan.bits:.2f} bits per weight")
    for warning in plan.warnings:
        print(f"Note: {warning}", file=sys.stderr)


def _role(name: str) -> str:
    """``blk.3.ffn_down.weight`` is ``ffn_down``."""
    parts = name.split(".")
    return ".".join(part for part in parts if part not in ("blk", "weight") and not part.isdigit())
