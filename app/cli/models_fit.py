"""``localllm models fit``: what the models here need against what the machine has, and what else would fit."""

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING

from app.cli.output import human_bytes, print_table
from localllm.errors import InvalidModelError, StoreError
from localllm.paths import Home
from localllm.sanitize import one_line, printable

if TYPE_CHECKING:
    from localllm.memory import Fit, MachineMemory
    from localllm.models.manifest import Manifest
    from localllm.models.store import ModelStore

_EXAMPLES = """examples:
  localllm models fit                        all models here
  localllm models fit smollm2-135m --ctx 4096
"""
_USUAL_CONTEXT = 8192
# Bits per weight of a whole file, embeddings and scales included.
_QUANTIZATIONS = {"Q4_K_M": 4.9, "Q8_0": 8.5, "F16": 16.0}


@dataclass(frozen=True)
class _Typical:
    """A usual size of model, with the numbers of a well-known one of that size."""

    size: str
    like: str
    parameters: float
    n_layer: int
    n_embd_kv: int
    n_embd: int
    n_ff: int
    n_vocab: int


_TYPICAL = (
    _Typical("0.5B", "Qwen2.5 0.5B", 0.49e9, 24, 128, 896, 4864, 151_936),
    _Typical("1B", "Llama 3.2 1B", 1.24e9, 16, 512, 2048, 8192, 128_256),
    _Typical("3B", "Llama 3.2 3B", 3.21e9, 28, 1024, 3072, 8192, 128_256),
    _Typical("7B", "Mistral 7B", 7.25e9, 32, 1024, 4096, 14_336, 32_768),
    _Typical("8B", "Llama 3.1 8B", 8.03e9, 32, 1024, 4096, 14_336, 128_256),
    _Typical("14B", "Qwen3 14B", 14.8e9, 40, 1024, 5120, 17_408, 151_936),
    _Typical("32B", "Qwen3 32B", 32.8e9, 64, 1024, 5120, 25_600, 151_936),
    _Typical("70B", "Llama 3.3 70B", 70.6e9, 80, 1024, 8192, 28_672, 128_256),
)


@dataclass(frozen=True)
class _Row:
    """One model of the store."""

    name: str
    size: int
    fit: "Fit"
    largest_context: int


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``localllm models fit``."""
    parser.description = (
        "What each model needs in memory (weights, the KV cache of its context, scratch buffers), and whether the\n"
        "machine has that. Nothing is loaded."
    )
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("names", nargs="*", metavar="NAME", help="models; all of them by default")
    parser.add_argument(
        "--ctx", type=_tokens, default=0, metavar="N", help="tokens of context; 0 (the default) chooses what fits"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object, sizes in bytes")


def run(args: argparse.Namespace, home: Home) -> int:
    """Print both tables."""
    # Deferred: pydantic, psutil and the store cost 80 ms, which `--help` need not pay.
    from localllm.memory import machine_memory
    from localllm.models.store import ModelStore
    from localllm.settings import load_settings

    store = ModelStore(home)
    settings = load_settings(home.settings_file)
    n_ctx = args.ctx or settings.ctx
    machine = machine_memory(settings.memory_gb)
    manifests = [store.resolve(name) for name in args.names] or store.list()
    rows = _measure(manifests, store, machine, n_ctx)
    typical = _typical_fits(machine, n_ctx or _USUAL_CONTEXT)
    if args.json:
        _print_json(machine, rows, typical)
    else:
        _print_models(rows, machine)
        _print_typical(typical, n_ctx or _USUAL_CONTEXT)
    return 0


def _measure(manifests: Sequence["Manifest"], store: "ModelStore", machine: "MachineMemory", n_ctx: int) -> list[_Row]:
    """A row for each model; one that cannot be read is named on standard error."""
    from localllm.memory import fit  # deferred, as in run
    from localllm.memory_safetensors import files_shape

    rows = []
    for manifest in manifests:
        name = str(manifest.model_name)
        try:
            shape = files_shape(store.paths(manifest))
        except (InvalidModelError, StoreError) as error:
            print(f"{name}: {printable(error.message)}", file=sys.stderr)
            continue
        largest = shape.largest_context(machine.budget, shape.n_ctx_train or _USUAL_CONTEXT)
        rows.append(_Row(name, manifest.size, fit(shape, machine, n_ctx), largest))
    return rows


def _typical_fits(machine: "MachineMemory", n_ctx: int) -> list[tuple[_Typical, dict[str, tuple[int, bool]]]]:
    """For each usual size, by quantization: bytes needed, and whether they fit."""
    from localllm.memory import ModelShape  # deferred, as in run

    found = []
    for model in _TYPICAL:
        needs = {}
        for quantization, bits in _QUANTIZATIONS.items():
            shape = ModelShape(
                weights=int(model.parameters * bits / 8),
                kv_per_token=2 * model.n_layer * model.n_embd_kv,
                n_vocab=model.n_vocab,
                n_embd=model.n_embd,
                n_ff=model.n_ff,
                n_ctx_train=0,
            )
            total = shape.need(n_ctx).total
            needs[quantization] = (total, total <= machine.budget)
        found.append((model, needs))
    return found


def _print_models(rows: Sequence[_Row], machine: "MachineMemory") -> None:
    total, budget, free = (human_bytes(n) for n in (machine.total, machine.budget, machine.available))
    print(f"This machine has {total} of memory; models may use {budget} of it; {free} is free now.\n")
    if not rows:
        return
    print_table(
        ("NAME", "SIZE", "WEIGHTS", "CONTEXT", "KV CACHE", "TOTAL", "FITS", "LARGEST CONTEXT"),
        [
            (
                one_line(row.name),
                human_bytes(row.size),
                human_bytes(row.fit.need.weights),
                str(row.fit.n_ctx),
                human_bytes(row.fit.need.kv_cache),
                human_bytes(row.fit.need.total),
                _yes(row.fit.fits),
                str(row.largest_context) if row.largest_context else "none",
            )
            for row in rows
        ],
        right=(1, 2, 3, 4, 5, 7),
    )
    print()


def _print_typical(typical: Sequence[tuple[_Typical, dict[str, tuple[int, bool]]]], n_ctx: int) -> None:
    print(f"What would fit here, with {n_ctx} tokens of context:\n")
    headers = [header for quantization in _QUANTIZATIONS for header in (quantization, "FITS")]
    rows = []
    for model, needs in typical:
        cells = [cell for total, fits in needs.values() for cell in (human_bytes(total), _yes(fits))]
        rows.append((model.size, model.like, *cells))
    print_table(("WEIGHTS", "SUCH AS", *headers), rows, right=(0, 2, 4, 6))


def _print_json(
    machine: "MachineMemory", rows: Sequence[_Row], typical: Sequence[tuple[_Typical, dict[str, tuple[int, bool]]]]
) -> None:
    report = {
        "machine": asdict(machine),
        "models": [
            {
                "name": row.name,
                "size": row.size,
                "n_ctx": row.fit.n_ctx,
                **asdict(row.fit.need),
                "total": row.fit.need.total,
                "fits": row.fit.fits,
                "reason": row.fit.reason,
                "largest_context": row.largest_context,
            }
            for row in rows
        ],
        "typical": [
            {"size": model.size, "quantization": quantization, "total": total, "fits": fits}
            for model, needs in typical
            for quantization, (total, fits) in needs.items()
        ],
    }
    print(json.dumps(report, indent=2))


def _yes(fits: bool) -> str:
    return "yes" if fits else "no"


def _tokens(text: str) -> int:
    value = int(text)
    if value < 0:
        raise argparse.ArgumentTypeError("it cannot be negative")
    return value
