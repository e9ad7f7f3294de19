"""Which tensor of one form is made of which rows of the other, by a family's rules."""

import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.architectures.falcon import key_value_heads
from quant.architectures.family import Config, Family, Rule, Transform
from quant.architectures.rope import head_dim
from quant.architectures.shapes import Sizes, check_shapes, feed_forward_width, wrong_shape
from quant.tensors.rows import Piece, TensorPlan
from quant.tensors.source import TensorInfo, TensorSource

_SUFFIXES = (".weight", ".bias")
# Beside vectors and norms, what llama.cpp keeps in F32.
_F32 = re.compile(r".*_norm\.weight|blk\.\d+\.ffn_gate_inp\.weight|position_embd\.weight|token_types\.weight")


@dataclass(frozen=True)
class Heads:
    """The numbers that rows depend on.

    Attributes:
        n_head: Attention heads.
        n_head_kv: Heads of keys and values.
        width: Rows of a head.
        n_expert: 0 without a mixture.
        n_layer: Blocks.
    """

    n_head: int
    n_head_kv: int
    width: int
    n_expert: int
    n_layer: int

    @classmethod
    def of(cls, family: Family, config: Config) -> "Heads":
        """Of a model with this config.json, which has passed :func:`.config.metadata_of`."""
        n_head = int(config.get("num_attention_heads") or config.get("n_head") or 0)
        falcon = family.architecture == "falcon"
        return cls(
            n_head=n_head,
            n_head_kv=key_value_heads(config) if falcon else int(config.get("num_key_value_heads") or n_head),
            width=head_dim({**config, "num_attention_heads": n_head}),
            n_expert=int(config.get("num_local_experts") or config.get("num_experts") or 0),
            n_layer=int(config.get("num_hidden_layers") or config.get("n_layer") or 0),
        )

    def sizes(self, family: Family, config: Config) -> Sizes:
        """What the shapes of the model's tensors depend on."""
        inner = feed_forward_width(family.architecture, config)
        return Sizes(
            width=int(config["hidden_size"]),
            queries=self.n_head * self.width,
            keys=self.n_head_kv * self.width,
            feed_forward=inner,
            gated=2 * inner if family.architecture == "phi3" else inner,
            experts=self.n_expert,
            expert_forward=int(config.get("moe_intermediate_size") or inner),
        )

    def gguf_rows(self, rule: Rule, tensor: TensorInfo) -> tuple[Piece, ...]:
        """The rows of a module's tensor in the order that GGUF has them in.

        Raises:
            InvalidModelError: They are not as many as the heads need.
        """
        if rule.transform is Transform.ROTARY:
            return self.rotary(tensor, interleave=True)
        if rule.transform is Transform.GROUPED_QKV:
            return self.groups(tensor, apart=True)
        return (Piece(tensor.name, 0, tensor.n_rows),)

    def rotary(self, tensor: TensorInfo, *, interleave: bool) -> tuple[Piece, ...]:
        """Rotary halves as pairs, or the reverse."""
        if not self.width or tensor.n_rows % self.width or self.width % 2:
            raise wrong_shape(tensor.name, tensor.shape)
        return (Piece(tensor.name, 0, tensor.n_rows, self.width, interleave),)

    def groups(self, tensor: TensorInfo, *, apart: bool) -> tuple[Piece, ...]:
        """Falcon's fused projection: ``apart`` makes queries, keys, values of groups; else groups of those."""
        width, queries = self.width, self.n_head // self.n_head_kv
        if tensor.n_rows != self.n_head_kv * (queries + 2) * width:
            raise wrong_shape(tensor.name, tensor.shape)
        if apart:
            starts = [group * (queries + 2) * width for group in range(self.n_head_kv)]
            spans = [(0, queries), (queries, queries + 1), (queries + 1, queries + 2)]
            return tuple(
                Piece(tensor.name, start + first * width, start + last * width)
                for first, last in spans
                for start in starts
            )
        keys, values = self.n_head * width, (self.n_head + self.n_head_kv) * width
        return tuple(
            Piece(tensor.name, start, start + rows)
            for group in range(self.n_head_kv)
            for start, rows in (
                (group * queries * width, queries * width),
                (keys + group * width, width),
                (values + group * width, width),
            )
        )


@dataclass
class _Planner:
    """What planning in either direction needs.

    Attributes:
        source: The tensors there are.
        heads: The model's numbers.
        names: The name that rules use, and the one in the file.
        used: Tensors of the source that have a place in the target.
    """

    source: TensorSource
    heads: Heads
    names: dict[str, str]
    used: set[str] = field(default_factory=set)

    def find(self, name: str) -> TensorInfo | None:
        """The tensor that rules call ``name``."""
        actual = self.names.get(name)
        return self.source.tensors[actual] if actual is not None else None

    def take(self, tensor: TensorInfo) -> TensorInfo:
        self.used.add(tensor.name)
        return tensor


def plan_to_gguf(family: Family, config: Config, source: TensorSource, *, tied: bool) -> list[TensorPlan]:
    """The GGUF tensors of a model in Hugging Face's or MLX's form.

    Args:
        family: Its family.
        config: From :func:`.config.flatten_config`.
        source: Its weights.
        tied: Its output is its input embedding.

    Raises:
        InvalidModelError: A tensor is missing, unknown, or has a shape that config.json rules out.
    """
    planner = _Planner(source, Heads.of(family, config), {renamed(family, name): name for name in source.tensors})
    plans: list[TensorPlan] = []
    for rule, layer in steps(family, config, planner.heads.n_layer):
        if rule.gguf == "output" and tied:
            planner.used |= {name for own, name in planner.names.items() if own.startswith(f"{rule.hf}.")}
            if not family.needs_output:
                continue
            rule = Rule(_input_rule(family).hf, rule.gguf)
        found = [plan for suffix in _SUFFIXES if (plan := _to_gguf(planner, rule, layer, suffix))]
        if not found and not rule.optional:
            raise _missing(rule.hf.format(layer, expert=0))
        plans += found
    _refuse_unknown(family, {own for own, name in planner.names.items() if name not in planner.used})
    made = ((plan.name, plan.shape, plan.pieces[0].source) for plan in plans)
    check_shapes(planner.heads.sizes(family, config), made)
    return plans


def plan_to_hf(
    family: Family, config: Config, source: TensorSource, *, stacked_experts: bool = False
) -> list[TensorPlan]:
    """The tensors in Hugging Face's form of a GGUF model.

    Args:
        family: Its family.
        config: From :func:`.config.config_of`.
        source: The GGUF file.
        stacked_experts: Stacks of experts as MLX names them, else a matrix each as transformers does.

    Raises:
        InvalidModelError: As for :func:`plan_to_gguf`.
    """
    planner = _Planner(source, Heads.of(family, config), {name: name for name in source.tensors})
    planner.used |= {name for name in family.made_names if name in source.tensors}
    plans: list[TensorPlan] = []
    for rule, layer in steps(family, config, planner.heads.n_layer):
        found = [plan for suffix in _SUFFIXES for plan in _to_hf(planner, rule, layer, suffix, stacked_experts)]
        if not found and not rule.optional:
            raise _missing(rule.gguf.format(layer))
        plans += found
    _refuse_unknown(family, set(source.tensors) - planner.used)
    check_shapes(planner.heads.sizes(family, config), ((name, own.shape, name) for name, own in source.tensors.items()))
    return plans


def steps(family: Family, config: Config, n_layer: int) -> Iterator[tuple[Rule, int]]:
    """Each rule with each layer, the model's layers in their order."""
    rules = [rule for rule in family.rules if _holds(rule, config)]
    by_layer = [rule for rule in rules if "{}" in rule.gguf]
    first = rules.index(by_layer[0])
    yield from ((rule, 0) for rule in rules[:first])
    for layer in range(n_layer):
        yield from ((rule, layer) for rule in by_layer)
    yield from ((rule, 0) for rule in rules[first:] if rule not in by_layer)


def _holds(rule: Rule, config: Config) -> bool:
    if not rule.only_if:
        return True
    return bool(config.get(rule.only_if.removeprefix("-"))) != rule.only_if.startswith("-")


def _to_gguf(planner: _Planner, rule: Rule, layer: int, suffix: str) -> TensorPlan | None:
    target = rule.gguf.format(layer) + suffix
    if rule.transform is Transform.EXPERTS:
        return _stack(planner, rule, layer, suffix, target)
    tensor = planner.find(rule.hf.format(layer) + suffix)
    if tensor is None:
        return None
    planner.take(tensor)
    pieces = planner.heads.gguf_rows(rule, tensor)
    keep_f32 = len(tensor.shape) == 1 or bool(_F32.fullmatch(target))
    shift = 1.0 if rule.transform is Transform.PLUS_ONE else 0.0
    return TensorPlan(target, tensor.shape, pieces, shift, keep_f32)


def _stack(planner: _Planner, rule: Rule, layer: int, suffix: str, target: str) -> TensorPlan | None:
    """One stack of all experts, from a stack, from one of gates and ups in turn, or from a matrix an expert."""
    n_expert = planner.heads.n_expert
    if whole := planner.find(rule.stacked.format(layer) + suffix):
        if whole.shape[0] != n_expert:
            raise wrong_shape(whole.name, whole.shape)
        return TensorPlan(target, whole.shape, (Piece(planner.take(whole).name, 0, whole.n_rows),))
    if suffix == ".weight" and (fused := planner.find(rule.fused.format(layer))):
        if len(fused.shape) != 3 or fused.shape[0] != n_expert:
            raise wrong_shape(fused.name, fused.shape)
        _, rows, columns = fused.shape
        own = rows if rule.half is None else rows // 2
        starts = [expert * rows + (rule.half or 0) * own for expert in range(n_expert)]
        pieces = tuple(Piece(planner.take(fused).name, start, start + own) for start in starts)
        return TensorPlan(target, (n_expert, own, columns), pieces)
    singles = [planner.find(rule.hf.format(layer, expert=expert) + suffix) for expert in range(n_expert)]
    found = [planner.take(tensor) for tensor in singles if tensor is not None]
    if not found:
        return None
    if len(found) != n_expert:
        raise _missing(rule.hf.format(layer, expert=singles.index(None)) + suffix)
    for tensor in found:
        if tensor.shape != found[0].shape or len(tensor.shape) != 2:
            raise wrong_shape(tensor.name, tensor.shape)
    pieces = tuple(Piece(tensor.name, 0, tensor.n_rows) for tensor in found)
    return TensorPlan(target, (n_expert, *found[0].shape), pieces)


def _to_hf(planner: _Planner, rule: Rule, layer: int, suffix: str, stacked_experts: bool) -> list[TensorPlan]:
    tensor = planner.find(rule.gguf.format(layer) + suffix)
    if tensor is None:
        return _part(planner, rule, layer, suffix)
    planner.take(tensor)
    target = rule.hf.format(layer, expert=0) + suffix
    match rule.transform:
        case Transform.EXPERTS if stacked_experts:
            return [_whole(rule.stacked.format(layer) + suffix, tensor)]
        case Transform.EXPERTS:
            if len(tensor.shape) != 3 or tensor.shape[0] != planner.heads.n_expert:
                raise wrong_shape(tensor.name, tensor.shape)
            count, rows, _ = tensor.shape
            return [
                TensorPlan(
                    rule.hf.format(layer, expert=expert) + suffix,
                    tensor.shape[1:],
                    (Piece(tensor.name, expert * rows, (expert + 1) * rows),),
                )
                for expert in range(count)
            ]
        case Transform.ROTARY:
            return [TensorPlan(target, tensor.shape, planner.heads.rotary(tensor, interleave=False))]
        case Transform.GROUPED_QKV:
            return [TensorPlan(target, tensor.shape, planner.heads.groups(tensor, apart=False))]
        case Transform.PLUS_ONE:
            return [TensorPlan(target, tensor.shape, (Piece(tensor.name, 0, tensor.n_rows),), -1.0)]
        case Transform.SAME:
            return [_whole(target, tensor)]


def _part(planner: _Planner, rule: Rule, layer: int, suffix: str) -> list[TensorPlan]:
    """A projection out of the fused one that older files have."""
    tensor = planner.find(rule.part_of.format(layer) + suffix) if rule.part_of else None
    if tensor is None:
        return []
    heads = planner.heads
    sizes = [heads.n_head * heads.width, heads.n_head_kv * heads.width, heads.n_head_kv * heads.width]
    if tensor.n_rows != sum(sizes):
        raise wrong_shape(tensor.name, tensor.shape)
    start = sum(sizes[: rule.part])
    stop = start + sizes[rule.part]
    head_rows = heads.width if rule.transform is Transform.ROTARY else 0
    piece = Piece(planner.take(tensor).name, start, stop, head_rows, interleave=False)
    return [TensorPlan(rule.hf.format(layer) + suffix, (stop - start, *tensor.shape[1:]), (piece,))]


def _whole(name: str, tensor: TensorInfo) -> TensorPlan:
    return TensorPlan(name, tensor.shape, (Piece(tensor.name, 0, tensor.n_rows),))


def renamed(family: Family, name: str) -> str:
    """The name that the family's rules use, of a tensor or module that may be spelled otherwise."""
    for pattern, replacement in family.renamed:
        name = re.sub(pattern, replacement, name)
    return name


def _input_rule(family: Family) -> Rule:
    return next(rule for rule in family.rules if rule.gguf == "token_embd")


def _refuse_unknown(family: Family, names: set[str]) -> None:
    unknown = sorted(name for name in names if not any(re.fullmatch(pattern, name) for pattern in family.ignored))
    if unknown:
        raise InvalidModelError(
            f"The model has {len(unknown)} tensors that {family.architecture} models do not have, "
            f"{one_line(unknown[0], 80)!r} first.",
            "It may be a variant that cannot be converted.",
        )


def _missing(name: str) -> InvalidModelError:
    return InvalidModelError(f"The model lacks the tensor {one_line(name, 80)!r}.", "Pull the model again.")
