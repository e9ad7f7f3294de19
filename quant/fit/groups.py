"""Tensors that are alike: of the same role, in the same third of the layers."""

import re

_LAYER = re.compile(r"^blk\.(\d+)\.(.+)\.weight$")
_BANDS = ("first", "middle", "last")


def role_of(name: str) -> str:
    """``blk.3.ffn_down.weight`` is ``ffn_down``, ``token_embd.weight`` is ``token_embd``."""
    found = _LAYER.match(name)
    return found[2] if found else name.removesuffix(".weight")


def group_of(name: str, n_layer: int) -> str:
    """``ffn_down:last`` for a tensor in the last third of the layers; the role alone for what is outside of them.

    Layers of one role differ mostly by depth, and smoothly: thirds tell the first and last layers, which hurt most,
    from the others, at three measurements a role instead of one a tensor.
    """
    found = _LAYER.match(name)
    if not found:
        return role_of(name)
    band = min(int(found[1]) * len(_BANDS) // max(n_layer, 1), len(_BANDS) - 1)
    return f"{found[2]}:{_BANDS[band]}"
