"""Tensors that are alike: of the same role, most of them in the same third of the layers."""

import re

_LAYER = re.compile(r"^blk\.(\d+)\.(.+)\.weight$")
_BANDS = ("first", "middle", "last")
_SINGLY = ("ffn_down", "ffn_down_exps")


def role_of(name: str) -> str:
    """``blk.3.ffn_down.weight`` is ``ffn_down``, ``token_embd.weight`` is ``token_embd``."""
    found = _LAYER.match(name)
    return found[2] if found else name.removesuffix(".weight")


def group_of(name: str, n_layer: int) -> str:
    """``attn_q:last`` for a tensor in the last third of the layers; the role alone for what is outside of them.

    Layers of one role differ mostly by depth, and smoothly: thirds tell the first and last layers, which hurt most,
    from the others, at three measurements a role instead of one a tensor. Only ``ffn_down`` is different: in a few
    layers, which depth does not tell, nearly all that it says is one huge output, and there the same relative error
    does ten times and more the harm. Each of its tensors is a group (``ffn_down:11``).
    """
    found = _LAYER.match(name)
    if not found:
        return role_of(name)
    layer, role = int(found[1]), found[2]
    if role in _SINGLY:
        return f"{role}:{layer}"
    return f"{role}:{_BANDS[min(layer * len(_BANDS) // max(n_layer, 1), len(_BANDS) - 1)]}"
