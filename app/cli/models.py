"""``localllm models [list|show|rm|fit]``: what is in the stores of models and adapters."""

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

from app.cli import models_adapters, models_export, models_fit
from app.cli.output import human_bytes, print_table
from localllm.adapters import AdapterManifest, AdapterStore
from localllm.errors import ModelNotFoundError, UsageError
from localllm.models.manifest import Manifest, made_by
from localllm.models.measured import forget_predictions
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.sanitize import one_line
from localllm.snapshots import remove_model_snapshots

_LISTED = 5  # values of a recipe; of more their number says enough


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the subcommands and their arguments; without one, the models are listed."""
    parser.set_defaults(json=False)
    _add_json(parser)
    commands = parser.add_subparsers(dest="action", metavar="{list,show,rm,fit,export}")
    listing = commands.add_parser("list", help="the models that are here (the default)", allow_abbrev=False)
    _add_json(listing)
    show = commands.add_parser("show", help="everything known about one model or adapter", allow_abbrev=False)
    show.add_argument("name", metavar="NAME", help="name or name:variant; +name for an adapter")
    _add_json(show)
    remove = commands.add_parser("rm", help="remove models and adapters", allow_abbrev=False)
    remove.add_argument(
        "names", metavar="NAME", nargs="+", help="name:variant (or name, when it has one variant); +name"
    )
    remove.add_argument("-y", "--yes", action="store_true", help="do not ask")
    models_fit.configure(commands.add_parser("fit", help="what would fit in this machine's memory", allow_abbrev=False))
    models_export.configure(commands.add_parser("export", help="the same model in another form", allow_abbrev=False))


def run(args: argparse.Namespace, home: Home) -> int:
    """Run the chosen subcommand."""
    store, adapters = ModelStore(home), AdapterStore(home)
    match args.action:
        case "show":
            if (adapter := models_adapters.find(store, adapters, args.name)) is not None:
                return models_adapters.show(adapters, adapter, as_json=args.json)
            return _show(store, args.name, as_json=args.json)
        case "rm":
            return _remove(store, adapters, args.names, yes=args.yes)
        case "fit":
            return models_fit.run(args, home)
        case "export":
            return models_export.run(args, home)
        case _:
            return _list(store, adapters, as_json=args.json)


def _add_json(parser: argparse.ArgumentParser) -> None:
    # SUPPRESS: a subparser's default must not undo the flag given before the subcommand.
    parser.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _list(store: ModelStore, adapters: AdapterStore, *, as_json: bool) -> int:
    models = store.list()
    if as_json:
        records = [_record(store, model) for model in models]
        print(json.dumps([*records, *models_adapters.records(adapters)], ensure_ascii=False))
    elif models:
        rows = [
            (
                str(model.model_name),
                human_bytes(model.size),
                human_count(model.parameters) if model.parameters else "-",
                model.quantization or "-",
                str(model.n_ctx_train) if model.n_ctx_train else "-",
                model.source,
            )
            for model in models
        ]
        print_table(("NAME", "SIZE", "PARAMS", "QUANT", "CONTEXT", "SOURCE"), rows, right=(1, 2, 4))
    else:
        print("No model is here yet. Fetch a small one with: localllm pull starter", file=sys.stderr)
    if not as_json:
        models_adapters.print_list(adapters)
    for directory in store.damaged():
        name = f"{directory.parent.name}:{directory.name}"
        print(f"{one_line(name)} is damaged: remove it with `localllm models rm {one_line(name)}`.", file=sys.stderr)
    return 0


def _show(store: ModelStore, name: str, *, as_json: bool) -> int:
    model = store.resolve(name)
    if as_json:
        print(json.dumps(_record(store, model), indent=2, ensure_ascii=False))
        return 0
    facts = [
        ("name", str(model.model_name)),
        ("source", model.source),
        ("revision", model.revision),
        ("format", model.format),
        ("architecture", model.architecture),
        ("parameters", f"{model.parameters:,}" if model.parameters else ""),
        ("quantization", model.quantization),
        ("context", f"{model.n_ctx_train:,} tokens in training" if model.n_ctx_train else ""),
        ("licence", model.licence),
        ("fetched", model.created),
        ("size", human_bytes(model.size)),
        ("kept in", str(store.directory(model))),
        ("made from", " <- ".join(_lineage(store, model))),
        *((key, _brief(value)) for key, value in model.extra.items()),
    ]
    for key, value in facts:
        if value:
            print(f"{one_line(key):13} {one_line(value)}")
    print("files")
    for file in model.files:
        print(f"  {one_line(file.path)}  {human_bytes(file.size)}  sha256 {one_line(file.sha256)}")
    if not store.is_whole(model):
        print(f"A file is missing or cut: `{one_line(made_by(model))}` mends it.", file=sys.stderr)
    return 0


def _brief(value: Any) -> str:
    """JSON in a line that can be read; ``--json`` has all of it."""
    match value:
        case dict():
            return ", ".join(f"{key} {_brief(part)}" for key, part in value.items() if part not in ("", [], {}, None))
        case list() if len(value) > _LISTED:
            return f"({len(value)} of them)"
        case list():
            return " ".join(map(_brief, value))
    return str(value)


def _lineage(store: ModelStore, model: Manifest) -> list[str]:
    """What the model was made from, and that from, as far as the store knows."""
    return [f"{one.parent.name} ({one.parent.how})" for one in store.lineage(model) if one.parent]


def _record(store: ModelStore, model: Manifest) -> dict[str, object]:
    record = asdict(model)
    return {
        "kind": "model",
        **record.pop("extra"),
        **record,
        "size": model.size,
        "directory": str(store.directory(model)),
    }


def _remove(store: ModelStore, adapters: AdapterStore, names: list[str], *, yes: bool) -> int:
    found: list[Path | AdapterManifest] = [
        models_adapters.find(store, adapters, name) or _find(store, name) for name in dict.fromkeys(names)
    ]
    doomed = list({_label(one): one for one in found}.values())
    if not yes:
        if not sys.stdin.isatty():
            raise UsageError("Nothing was removed: there is no terminal to ask on.", "Add --yes.")
        print(f"Remove {one_line(', '.join(map(_label, doomed)))}? [y/N] ", end="", file=sys.stderr, flush=True)
        if sys.stdin.readline().strip().lower() not in ("y", "yes"):
            print("Nothing was removed.", file=sys.stderr)
            return 1
    for one in doomed:
        note = discard(store, one) if isinstance(one, Path) else f"{human_bytes(adapters.remove(one))} freed"
        print(f"{one_line(_label(one))}  removed  ({one_line(note)})")
    return 0


def _label(found: Path | AdapterManifest) -> str:
    return f"+{found.name}" if isinstance(found, AdapterManifest) else f"{found.parent.name}:{found.name}"


def discard(store: ModelStore, directory: Path) -> str:
    """Remove a model, damaged or not, with its snapshots and predictions; returns what became of its files, in words.

    Raises:
        ModelNotFoundError: It is gone already.
    """
    model = next((model for model in store.list() if store.directory(model) == directory), None)
    freed = store.discard(directory)
    if model is not None:
        freed += remove_model_snapshots(store.home, model.files[0].sha256) + forget_predictions(store.home, model)
    if model is not None and store.is_reference(model):
        return f"only the reference: {model.files[0].path} stays"
    if model is not None and not freed:
        return "its files have another link and stay there"
    return f"{human_bytes(freed)} freed"


def _find(store: ModelStore, text: str) -> Path:
    """The directory of one model, or of a damaged one.

    Raises:
        ModelNotFoundError: There is none.
        UsageError: A name alone, and it has several variants: removing is no place to guess.
    """
    try:
        model = store.resolve(text)
    except ModelNotFoundError:
        damaged = next((path for path in store.damaged() if f"{path.parent.name}:{path.name}" == text.lower()), None)
        if damaged is None:
            raise
        return damaged
    variants = [other.variant for other in store.list() if other.name == text.strip().lower()]
    if len(variants) > 1:
        raise UsageError(
            f"{model.name} has {len(variants)} variants: {', '.join(variants)}.", f"Name one, as {model.model_name}."
        )
    return store.directory(model)


def human_count(n: int) -> str:
    """``135M``, ``1.7B``: a number of weights as models are usually named."""
    for size, unit in ((10**12, "T"), (10**9, "B"), (10**6, "M"), (10**3, "K")):
        if n >= size * 0.9995:
            value = n / size
            return f"{value:.3g}{unit}" if value < 999.5 else f"{value:.0f}{unit}"
    return str(n)
