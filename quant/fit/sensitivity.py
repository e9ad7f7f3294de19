"""What each tensor costs in quality at each type: measured once for a model, kept as JSON.

Three things are measured. (1) The whole model is quantized to every candidate type, and each tensor's relative output
error is computed from the weights and the importance matrix; no model runs. (2) For each group of tensors that are
alike, that group alone is quantized to a probing type with everything else as it was, and the KL divergence from the
source is measured. KL is quadratic in a small disturbance of the logits, so it grows with the squared error: its ratio
to the group's summed error is the group's scale, and scale times error predicts the KL of any tensor at any type.
(3) Where weights are quantized, llama.cpp on a CPU rounds their inputs to 8 bits too: with one scale for each 256 of
them for types in blocks of 256, for each 32 otherwise, which an outlier spoils less. That is in no tensor's error, and
it can be most of what good types lose. So the tensors of each role, which have inputs of a kind, are also quantized to
the largest type of either block; the KL beyond the predicted becomes an error that each of these tensors has at every
type of that block.

Measuring the KL of every tensor at every type instead would run the model some thousand times; this runs it some forty
times, and once a layer. All this depends on the architecture more than on the weights: what was measured of one model
can be given for the next of its family, and then no model runs at all.
"""

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from localllm.errors import InvalidModelError, QuantizeError
from localllm.files import write_atomic
from localllm.gguf_header import GGUFHeader, read_gguf_parts
from localllm.gguf_types import TENSOR_TYPES
from quant.child import CheckCancelled, Progress
from quant.chunks import Text
from quant.fit.errors import relative_errors
from quant.fit.groups import group_of, role_of
from quant.imatrix.file import ImportanceMatrix, read_imatrix
from quant.llama_choices import source_parts
from quant.llama_quantize import quantize_gguf
from quant.llama_types import FILE_TYPES, FLOAT_TYPES
from quant.measure.run import MeasureOptions, make_reference, measure

# What a tensor's rows cannot take becomes another type, which is then a candidate for it. The old forms in blocks of 32
# are here for what they do to the inputs.
CANDIDATES = (
    "q8_0",
    "q6_k",
    "q5_k_s",
    "q4_k_s",
    "iq4_xs",
    "iq3_s",
    "q3_k_s",
    "iq3_xxs",
    "q2_k",
    "q5_1",
    "q5_0",
    "q4_1",
)
_PROBE = "q3_k_s"  # far enough from the source to be measured on little text, near enough to be a small disturbance
DEFAULT_OPTIONS = MeasureOptions(n_ctx=256, max_chunks=8)
_FORMAT = 4
_MEASURE = "Leave out --like: this model is measured itself then."
_BLOCK_OF = {kind.name: str(kind.block) for kind in TENSOR_TYPES.values()}
_BLOCKS = ("256", "32")


@dataclass(frozen=True)
class Stored:
    """A tensor at one type.

    Attributes:
        n_bytes: What it takes.
        error: Relative squared error of its outputs.
    """

    n_bytes: int
    error: float


@dataclass(frozen=True)
class Sensitivity:
    """What was measured of a model.

    Attributes:
        architecture: ``llama``, …
        n_layer: Layers; most groups are thirds of them.
        tensors: By tensor and type.
        scales: KL divergence (nats a token) for each unit of error, by group.
        rounding: Error that comes from rounding a tensor's inputs, by role and by the type's block (``256``, ``32``).
    """

    architecture: str
    n_layer: int
    tensors: Mapping[str, Mapping[str, Stored]]
    scales: Mapping[str, float]
    rounding: Mapping[str, Mapping[str, float]]

    def predicted_kl(self, name: str, kind: str) -> float:
        """The KL divergence that tensor ``name`` adds when its type is ``kind``."""
        rounded = self.rounding.get(role_of(name), {}).get(_block_of(kind), 0.0)
        return self.scales[group_of(name, self.n_layer)] * (self.tensors[name][kind].error + rounded)

    def save(self, path: Path) -> None:
        """Write it as JSON, atomically."""
        write_atomic(path, json.dumps({"format": _FORMAT, **asdict(self)}))


def read_sensitivity(path: Path) -> Sensitivity:
    """Read what :meth:`Sensitivity.save` wrote.

    Raises:
        InvalidModelError: It is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != _FORMAT:
            raise InvalidModelError(f"{path.name} is of another version.", "Measure it again.")
        tensors = {
            name: {kind: Stored(**stored) for kind, stored in kinds.items()}
            for name, kinds in record.pop("tensors").items()
        }
        return Sensitivity(**record, tensors=tensors)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModelError(f"{path.name} holds no sensitivities: {error}.", "Measure them again.") from error


def measure_sensitivity(
    source: Path,
    imatrix: Path | None,
    texts: Sequence[Text],
    work: Path,
    *,
    candidates: Sequence[str] = CANDIDATES,
    like: Sensitivity | None = None,
    options: MeasureOptions = DEFAULT_OPTIONS,
    progress: Progress,
    check_cancelled: CheckCancelled,
) -> Sensitivity:
    """Measure a model.

    Args:
        source: A GGUF model.
        imatrix: Its importance matrix; without one the types that need it are left out.
        texts: What the model reads while groups are tried.
        work: A directory for quantized copies; one is there at a time.
        candidates: File types whose base types are tried; where scales are measured, ``q3_k_s`` must be one of them.
        like: What was measured of another model of the family: scales and rounding are its own, and no model runs.
        options: How KL is measured.
        progress: Called with (what, done, total).
        check_cancelled: Called often; what it raises ends the work.

    Raises:
        InvalidModelError: The model is damaged.
        QuantizeError: llama.cpp refuses, or ``like`` is of another family.
    """
    header = read_gguf_parts(source_parts(source))
    if like is not None:
        _require_family(header, like)
    matrix = read_imatrix(imatrix) if imatrix else None
    usable = [name for name in candidates if imatrix or FILE_TYPES[name].imatrix != "required"]
    tensors: dict[str, dict[str, Stored]] = {}
    copy, probed = work / "candidate.gguf", dict[str, str]()  # which type each tensor has in the probing file type
    for n_done, name in enumerate(usable):
        progress(f"errors at {name}", n_done, len(usable))
        types = _add_errors(source, copy, name, imatrix, matrix, tensors, check_cancelled)
        probed = types if name == _PROBE else probed
    if not tensors:
        raise QuantizeError("This model has no matrices that could be quantized.")
    groups = _members(tensors, lambda name: group_of(name, header.n_layer))
    if like is None:
        plain = header.quantization.lower() if header.quantization in FLOAT_TYPES else "f16"
        prober = _Prober(source, imatrix, work, plain, options, check_cancelled)
        prober.prepare(texts)
        found = _measure_scales(prober, groups, tensors, probed, progress)
        rounding = _measure_rounding(prober, tensors, lambda name: found[group_of(name, header.n_layer)], progress)
        return Sensitivity(header.architecture, header.n_layer, tensors, found, rounding)
    if missing := sorted(set(groups) - set(like.scales)):
        raise QuantizeError(f"What was measured of another model has nothing for {missing[0]}.", _MEASURE)
    kept = {group: like.scales[group] for group in groups}
    return Sensitivity(header.architecture, header.n_layer, tensors, kept, like.rounding)


def _require_family(header: GGUFHeader, like: Sensitivity) -> None:
    if (header.architecture, header.n_layer) != (like.architecture, like.n_layer):
        raise QuantizeError(
            f"A {header.architecture} of {header.n_layer} layers was expected to be like a {like.architecture} of "
            f"{like.n_layer}.",
            _MEASURE,
        )


def _block_of(kind: str) -> str:
    """How many inputs share a scale when they are rounded for weights of this type."""
    return "256" if _BLOCK_OF[kind] == "256" else "32"


def _add_errors(
    source: Path,
    copy: Path,
    file_type: str,
    imatrix: Path | None,
    matrix: ImportanceMatrix | None,
    tensors: dict[str, dict[str, Stored]],
    check_cancelled: CheckCancelled,
) -> dict[str, str]:
    """Add what is new; return the type that each tensor got."""
    made = quantize_gguf(source, copy, file_type, imatrix=imatrix, pure=True, check_cancelled=check_cancelled)
    changed = {tensor.name: tensor for tensor in made.plan.tensors if tensor.reason != "kept"}
    new = [name for name, tensor in changed.items() if tensor.to_type not in tensors.get(name, {})]
    for name, error in relative_errors(source, copy, new, matrix, check_cancelled=check_cancelled).items():
        tensor = changed[name]
        tensors.setdefault(name, {})[tensor.to_type] = Stored(tensor.n_bytes, error)
    copy.unlink()
    return {name: tensor.to_type for name, tensor in changed.items()}


@dataclass(frozen=True)
class _Prober:
    """Quantizes a few tensors, leaves all others as they were, and measures what that costs.

    Attributes:
        source: The model.
        imatrix: Its importance matrix.
        work: Holds the reference and one quantized copy at a time.
        plain: The type of what is left alone.
        options: How KL is measured.
        check_cancelled: Called often.
    """

    source: Path
    imatrix: Path | None
    work: Path
    plain: str
    options: MeasureOptions
    check_cancelled: CheckCancelled

    @property
    def _reference(self) -> Path:
        return self.work / "reference"

    def prepare(self, texts: Sequence[Text]) -> None:
        make_reference(self.source, self._reference, texts, options=self.options, check_cancelled=self.check_cancelled)

    def divergence(self, kinds: Mapping[str, str]) -> float:
        """The KL divergence with these tensors at these types, in nats a token."""
        # llama.cpp follows rules only where it quantizes: so to the probing type, and all others are told to stay.
        rules = [*(f"^{re.escape(name)}$={kind.lower()}" for name, kind in kinds.items()), f".*={self.plain}"]
        copy, check = self.work / "probe.gguf", self.check_cancelled
        quantize_gguf(
            self.source, copy, _PROBE, imatrix=self.imatrix, overrides=rules, pure=True, check_cancelled=check
        )
        found = measure(copy, reference=self._reference, options=self.options, check_cancelled=check)
        copy.unlink()
        assert found.divergence is not None  # a reference was given
        return found.divergence.kl_mean


def _members(tensors: Mapping[str, object], label: Callable[[str], str]) -> dict[str, list[str]]:
    members: dict[str, list[str]] = {}
    for name in tensors:
        members.setdefault(label(name), []).append(name)
    return members


def _measure_scales(
    prober: _Prober,
    groups: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Mapping[str, Stored]],
    probed: Mapping[str, str],
    progress: Progress,
) -> dict[str, float]:
    scales = {}
    for n_done, (group, names) in enumerate(groups.items()):
        progress(f"divergence of {group}", n_done, len(groups))
        kinds = {name: probed[name] for name in names}
        error = sum(tensors[name][kind].error for name, kind in kinds.items())
        scales[group] = prober.divergence(kinds) / error if error else 0.0
    return scales


def _measure_rounding(
    prober: _Prober,
    tensors: Mapping[str, Mapping[str, Stored]],
    scale_of: Callable[[str], float],
    progress: Progress,
) -> dict[str, dict[str, float]]:
    """By role and block: what is lost at the largest type of the block, beyond the error of its weights.

    All layers of a role are tried together: their inputs are alike (those of ``ffn_down`` have outliers, those that
    were just normalised have few), and one such measurement is well above the noise.
    """
    rounding: dict[str, dict[str, float]] = {}
    tried = [(role, block, names) for role, names in _members(tensors, role_of).items() for block in _BLOCKS]
    for n_done, (role, block, names) in enumerate(tried):
        progress(f"rounded inputs of {role} in blocks of {block}", n_done, len(tried))
        kinds = {name: kind for name in names if (kind := _largest(tensors[name], block))}
        scale = sum(map(scale_of, kinds))
        if scale:
            expected = sum(scale_of(name) * tensors[name][kind].error for name, kind in kinds.items())
            rounding.setdefault(role, {})[block] = max(prober.divergence(kinds) - expected, 0.0) / scale
    return rounding


def _largest(stored: Mapping[str, Stored], block: str) -> str | None:
    kinds = [kind for kind in stored if _block_of(kind) == block]
    return max(kinds, key=lambda kind: stored[kind].n_bytes, default=None)
