"""From a budget of memory to a type for every tensor."""

import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from localllm.errors import MemoryFitError, UsageError
from localllm.gguf_header import GGUFHeader
from localllm.gguf_types import TENSOR_TYPES
from localllm.memory import gigabytes, model_shape
from quant.fit.groups import role_of
from quant.fit.sensitivity import CANDIDATES, Sensitivity
from quant.fit.solver import Option, solve
from quant.like import rules
from quant.llama_types import FILE_TYPES, file_type_of

_ALIGNMENT = 32
_SIZE = re.compile(r"^([0-9]+(?:\.[0-9]+)?)\s*([kmgt]?)(i?)b?$", re.IGNORECASE)
_CANDIDATE_TYPES = frozenset(FILE_TYPES[name].base for name in CANDIDATES)
_POWERS = {"": 0, "k": 1, "m": 2, "g": 3, "t": 4}


@dataclass(frozen=True)
class Share:
    """The tensors of one role and type.

    Attributes:
        role: ``ffn_down``.
        kind: ``Q4_K``.
        n_tensors: How many.
        n_bytes: Together.
        predicted_kl: Together, in nats a token.
    """

    role: str
    kind: str
    n_tensors: int
    n_bytes: int
    predicted_kl: float


@dataclass(frozen=True)
class FitPlan:
    """A type for every tensor.

    Attributes:
        types: By tensor; those that are never quantized are not in it.
        n_bytes: Of all tensors in the result.
        budget: What they may take.
        predicted_kl: The sum over the tensors, in nats a token.
        lower_bound: No plan within the budget has a lower prediction.
        shares: By role and type.
    """

    types: Mapping[str, str]
    n_bytes: int
    budget: int
    predicted_kl: float
    lower_bound: float
    shares: tuple[Share, ...]

    @property
    def base(self) -> str:
        """The file type that the result is called after: the one of most bytes."""
        weights: Counter[str] = Counter()
        for share in self.shares:
            weights[share.kind] += share.n_bytes
        return file_type_of(weights)

    @property
    def overrides(self) -> tuple[str, ...]:
        """As rules for :func:`quant.llama_quantize.quantize_gguf`."""
        return rules(self.types)


def parse_budget(text: str) -> int:
    """``3GB``, ``500MB``, ``2.5GiB`` in bytes.

    Raises:
        UsageError: It is no size.
    """
    found = _SIZE.match(text.strip())
    n_bytes = 0
    if found:
        number, prefix, binary = found.groups()
        n_bytes = int(float(number) * (1024 if binary else 1000) ** _POWERS[prefix.lower()])
    if n_bytes <= 0:
        raise UsageError(f"{text!r} is no size.", "Give one such as 3GB or 500MB.")
    return n_bytes


def budget_for_tensors(header: GGUFHeader, memory: int, n_ctx: int) -> int:
    """What is left for the tensors of ``memory`` bytes beside the KV cache of ``n_ctx`` tokens and the scratch buffers.

    Raises:
        MemoryFitError: Nothing is left.
    """
    need = model_shape(header).need(n_ctx)
    beside = need.total - need.weights
    if beside >= memory:
        raise MemoryFitError(
            f"{n_ctx} tokens of context alone take {gigabytes(beside)} beside the weights.",
            "Give it more memory, or a shorter context with --ctx.",
        )
    return memory - beside


def require_possible(header: GGUFHeader, budget: int) -> None:
    """Refuse a budget that cannot hold the tensors at any type, before anything is measured.

    Raises:
        MemoryFitError: Even with every matrix at the fewest bits of all candidates, the tensors take more.
    """
    least_bits = min(8 * kind.n_bytes / kind.block for kind in TENSOR_TYPES.values() if kind.name in _CANDIDATE_TYPES)
    least = sum(
        tensor.n_elements * least_bits / 8 if len(tensor.shape) > 1 else tensor.n_bytes for tensor in header.tensors
    )
    if least > budget:
        raise MemoryFitError(
            f"The model's tensors take {gigabytes(int(least))} at the very least, and {gigabytes(budget)} are left "
            "for them.",
            "Give it more memory, a shorter context (--ctx), or take a smaller model.",
        )


def plan_fit(header: GGUFHeader, sensitivity: Sensitivity, budget: int) -> FitPlan:
    """The types that the least KL is predicted for, with all tensors in at most ``budget`` bytes.

    Args:
        header: The source.
        sensitivity: What was measured of it.
        budget: Bytes for the tensors, padding included.

    Raises:
        MemoryFitError: Not even the smallest types fit.
    """
    fixed = sum(_padded(tensor.n_bytes) for tensor in header.tensors if tensor.name not in sensitivity.tensors)
    names = list(sensitivity.tensors)
    kinds = [list(sensitivity.tensors[name]) for name in names]
    items = [
        [
            Option(_padded(sensitivity.tensors[name][kind].n_bytes), sensitivity.predicted_kl(name, kind))
            for kind in known
        ]
        for name, known in zip(names, kinds, strict=True)
    ]
    found = solve(items, budget - fixed)
    types = {name: known[index] for name, known, index in zip(names, kinds, found.chosen, strict=True)}
    return FitPlan(types, found.n_bytes + fixed, budget, found.cost, found.lower_bound, _shares(types, sensitivity))


def _padded(n_bytes: int) -> int:
    return -(-n_bytes // _ALIGNMENT) * _ALIGNMENT


def _shares(types: Mapping[str, str], sensitivity: Sensitivity) -> tuple[Share, ...]:
    members: dict[tuple[str, str], list[str]] = {}
    for name, kind in types.items():
        members.setdefault((role_of(name), kind), []).append(name)
    return tuple(
        Share(
            role,
            kind,
            len(names),
            sum(sensitivity.tensors[name][kind].n_bytes for name in names),
            sum(sensitivity.predicted_kl(name, kind) for name in names),
        )
        for (role, kind), names in sorted(members.items())
    )
