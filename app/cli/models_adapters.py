"""Adapters in ``localllm models``: a section of their own, under names that begin with ``+``."""

import json
from dataclasses import asdict

from app.cli.output import human_bytes, print_table
from localllm.adapters import AdapterManifest, AdapterStore
from localllm.errors import ModelNotFoundError
from localllm.models.store import ModelStore
from localllm.sanitize import one_line


def find(models: ModelStore, adapters: AdapterStore, name: str) -> AdapterManifest | None:
    """The adapter that ``name`` means: with a ``+`` always, without one where there is no such model.

    Returns:
        None where it means a model, or nothing at all.

    Raises:
        ModelNotFoundError: It has a ``+``, and there is no such adapter.
        UsageError: It is no name.
    """
    if name.strip().startswith("+"):
        return adapters.resolve(name)
    try:
        models.resolve(name)
    except ModelNotFoundError:
        return next((adapter for adapter in adapters.list() if adapter.name == name.strip().lower()), None)
    return None


def print_list(adapters: AdapterStore) -> None:
    """The adapters as a table below that of the models; nothing where there are none."""
    rows = [
        (f"+{one.name}", human_bytes(one.size), str(one.rank), one.base or "-", " ".join(one.forms), one.source)
        for one in adapters.list()
    ]
    if rows:
        print()
        print_table(("ADAPTER", "SIZE", "RANK", "FOR", "FORMS", "SOURCE"), rows, right=(1, 2))


def records(adapters: AdapterStore) -> list[dict[str, object]]:
    """The adapters for ``--json``."""
    return [_record(adapters, adapter) for adapter in adapters.list()]


def show(adapters: AdapterStore, adapter: AdapterManifest, *, as_json: bool) -> int:
    """Print everything known about one adapter."""
    if as_json:
        print(json.dumps(_record(adapters, adapter), indent=2, ensure_ascii=False))
        return 0
    facts = [
        ("adapter", f"+{adapter.name}"),
        ("for", adapter.base),
        ("architecture", adapter.architecture),
        ("rank", str(adapter.rank)),
        ("alpha", f"{adapter.alpha:g}" if adapter.alpha else ""),
        ("forms", " ".join(adapter.forms)),
        ("source", adapter.source),
        ("installed", adapter.created),
        ("size", human_bytes(adapter.size)),
        ("kept in", str(adapters.directory(adapter))),
    ]
    for key, value in facts:
        if value:
            print(f"{one_line(key):13} {one_line(value)}")
    print("files")
    for file in adapter.files:
        print(f"  {one_line(file.path)}  {human_bytes(file.size)}  sha256 {one_line(file.sha256)}")
    return 0


def _record(adapters: AdapterStore, adapter: AdapterManifest) -> dict[str, object]:
    more = {"kind": "adapter", "forms": adapter.forms, "size": adapter.size}
    return {**asdict(adapter), **more, "directory": str(adapters.directory(adapter))}
