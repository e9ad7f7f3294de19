"""Which models of a store are the same model in another form."""

from localllm.models.manifest import Manifest, Parent
from localllm.models.store import ModelStore

Root = tuple[str, str, bool]

_DEEPEST = 64  # a chain of parents longer than this is a damaged store's


def relatives(store: ModelStore, source: Manifest) -> list[Manifest]:
    """Models that were quantized, exported or pruned from ``source``, or from what that itself was made from.

    Other variants of its name are too, where nothing says what they were made from (each was pulled by itself). What
    was tuned on the way is another model: its distance from the source is no loss.
    """
    models = {str(model.model_name): model for model in store.list()}
    root = _root(models, source)
    return [
        model
        for name, model in models.items()
        if name != str(source.model_name) and _is_same(_root(models, model), root, model.name == source.name)
    ]


def _root(models: dict[str, Manifest], model: Manifest) -> Root:
    """Name and hash of what a model goes back to without a change of what it knows; and whether that is an original."""
    found = model
    for _ in range(_DEEPEST):
        parent = found.parent
        if parent is None or not _keeps_the_model(parent):
            break
        above = models.get(parent.name)
        if above is None or above.files[0].sha256 != parent.sha256:
            return parent.name, parent.sha256, True  # it was removed, or replaced
        found = above
    return str(found.model_name), found.files[0].sha256, found.parent is None


def _keeps_the_model(parent: Parent) -> bool:
    """Not where an adapter was fused in: then the command says ``BASE+ADAPTER``."""
    return parent.how.startswith(tuple(f"{verb} {parent.name} " for verb in ("quantize", "models export", "sparsify")))


def _is_same(root: Root, wanted: Root, same_name: bool) -> bool:
    return root == wanted or (same_name and root[2] and wanted[2])
