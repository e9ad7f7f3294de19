"""The shapes that a model's settings promise: llama.cpp and mlx-lm refuse to load tensors of others."""

from collections.abc import Iterable
from dataclasses import dataclass

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.architectures.family import Config

_ANY = 0  # as many as there are


@dataclass(frozen=True)
class Sizes:
    """The numbers that shapes depend on.

    Attributes:
        width: Of the embedding.
        queries: Rows of all heads' queries.
        keys: Rows of all heads' keys; values are as many.
        feed_forward: Inner width of a dense feed-forward part.
        gated: Rows of its first matrix: twice as many where the gate is in it.
        experts: 0 without a mixture.
        expert_forward: Inner width of an expert.
    """

    width: int
    queries: int
    keys: int
    feed_forward: int
    gated: int
    experts: int
    expert_forward: int

    @property
    def by_module(self) -> dict[str, tuple[int, ...]]:
        """Shapes of weights in numpy's order, by GGUF's name inside a block; :data:`_ANY` where all sizes do."""
        width, inner, expert = self.width, self.feed_forward, self.expert_forward
        return {
            "token_embd": (_ANY, width),
            "output": (_ANY, width),
            "attn_q": (self.queries, width),
            "attn_k": (self.keys, width),
            "attn_v": (self.keys, width),
            "attn_qkv": (self.queries + 2 * self.keys, width),
            "attn_output": (width, self.queries),
            "ffn_gate": (inner, width),
            "ffn_up": (self.gated, width),
            "ffn_down": (width, inner),
            "ffn_gate_inp": (self.experts, width),
            "ffn_gate_exps": (self.experts, expert, width),
            "ffn_up_exps": (self.experts, expert, width),
            "ffn_down_exps": (self.experts, width, expert),
            **dict.fromkeys(_NORMS, (width,)),
        }


_NORMS = (
    "output_norm",
    "attn_norm",
    "attn_norm_2",
    "attn_output_norm",
    "ffn_norm",
    "post_attention_norm",
    "post_ffw_norm",
    "layer_output_norm",
    "token_embd_norm",
)


def feed_forward_width(architecture: str, config: Config) -> int:
    """Inner width of a dense feed-forward part; Falcon has another word for it, and a default."""
    if architecture == "falcon":
        return int(config.get("ffn_hidden_size") or 4 * int(config["hidden_size"]))
    return int(config["intermediate_size"])


def check_shapes(sizes: Sizes, tensors: Iterable[tuple[str, tuple[int, ...], str]]) -> None:
    """Refuse a model whose tensors are not as large as its settings say.

    Args:
        sizes: Of the settings.
        tensors: GGUF's name and the shape of each, and what its file calls it.

    Raises:
        InvalidModelError: One has another shape.
    """
    promised = sizes.by_module
    for name, shape, own in tensors:
        module, _, suffix = name.rpartition(".")
        wanted = promised.get(module.rpartition(".")[2])
        if wanted is None:
            continue
        if suffix == "bias" and len(wanted) > 1:
            wanted = wanted[:-1]
        if len(shape) != len(wanted) or any(size not in (_ANY, have) for size, have in zip(wanted, shape, strict=True)):
            raise wrong_shape(own, shape)


def wrong_shape(name: str, shape: tuple[int, ...]) -> InvalidModelError:
    """That a tensor does not fit the model's settings."""
    return InvalidModelError(
        f"The tensor {one_line(name, 80)!r} has the shape {list(shape)}, which does not fit the model's settings.",
        "Its files may be of two models, or damaged: pull the model again.",
    )
