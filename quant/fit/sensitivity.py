"""What each tensor costs in quality at each type: measured once for a model, kept as JSON.

Two things are measured. (1) The whole model is quantized to every candidate type, and each tensor's relative output
error is computed from the weights and the importance matrix; no model runs. (2) For each group of tensors that are
alike, that group alone is quantized to a probing type with everything else as it was, and the KL divergence from the
source is measured. KL is quadratic in a small disturbance of the logits, so it grows with the squared error: its ratio
to the group's summed error is the group's scale, and scale times error predicts the KL of any tensor at any type.

Measuring the KL of every tensor at every type instead would run the model some thousand times; this runs it once a
group, some twenty times. The scales depend on the architecture more than on the weights: those of one model can be
given for the next of its family, and then no model runs at all.
"""

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from localllm.errors import InvalidModelError, QuantizeError
from localllm.files import write_atomic
from localllm.gguf_header import GGUFHeader, read_gguf_parts
from quant.child import CheckCancelled, Progress
from quant.chunks import Text
from quant.fit.errors import relative_errors
from quant.fit.groups import group_of
from quant.imatrix.file import ImportanceMatrix, read_imatrix
from quant.llama_choices import source_parts
from quant.llama_quantize import quantize_gguf
from quant.llama_types import FILE_TYPES
from quant.measure.run import MeasureOptions, make_reference, measure

# From large to small; what a tensor's rows cannot take becomes another type, which is then a candidate for it.
CANDIDATES = ("q8_0", "q6_k", "q5_k_s", "q4_k_s", "iq4_xs", "iq3_s", "q3_k_s", "iq3_xxs", "q2_k")
_PROBE = "q3_k_s"  # far enough from the source to be measured on little text, near enough to be a small disturbance
DEFAULT_OPTIONS = MeasureOptions(n_ctx=256, max_chunks=8)
_FLOATS = ("F32", "F16", "BF16")
_FORMAT = 1


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
        n_layer: Layers; the groups are thirds of them.
        tensors: By tensor and type.
        scales: KL divergence (nats a token) for each unit of error, by group.
    """

    architecture: str
    n_layer: int
    tensors: Mapping[str, Mapping[str, Stored]]
    scales: Mapping[str, float]

    def predicted_kl(self, name: str, kind: str) -> float:
        """The KL divergence that tensor ``name`` adds when its type is ``kind``."""
        return self.scales[group_of(name, self.n_layer)] * self.tensors[name][kind].error

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
    scales: Mapping[str, float] | None = None,
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
        scales: Those of another model of the family; then no model runs.
        options: How KL is measured.
        progress: Called with (what, done, total).
        check_cancelled: Called often; what it raises ends the work.

    Raises:
        InvalidModelError: The model is damaged.
        QuantizeError: llama.cpp refuses, or the scales are another family's.
    """
    header = read_gguf_parts(source_parts(source))
    matrix = read_imatrix(imatrix) if imatrix else None
    usable = [name for name in candidates if imatrix or FILE_TYPES[name].imatrix != "required"]
    tensors: dict[str, dict[str, Stored]] = {}
    copy = work / "candidate.gguf"
    for n_done, name in enumerate(usable):
        progress(f"errors at {name}", n_done, len(usable))
        _add_errors(source, copy, name, imatrix, matrix, tensors, check_cancelled)
    if not tensors:
        raise QuantizeError("This model has no matrices that could be quantized.")
    groups: dict[str, list[str]] = {}
    for name in tensors:
        groups.setdefault(group_of(name, header.n_layer), []).append(name)
    if scales is None:
        scales = _measure_scales(
            source, header, imatrix, texts, work, groups, tensors, options, progress, check_cancelled
        )
    elif missing := sorted(set(groups) - set(scales)):
        raise QuantizeError(f"The scales are another family's: they have nothing for {missing[0]}.", "Measure them.")
    kept = {group: scales[group] for group in groups}
    return Sensitivity(header.architecture, header.n_layer, tensors, kept)


def _add_errors(
    source: Path,
    copy: Path,
    file_type: str,
    imatrix: Path | None,
    matrix: ImportanceMatrix | None,
    tensors: dict[str, dict[str, Stored]],
    check_cancelled: CheckCancelled,
) -> None:
    made = quantize_gguf(source, copy, file_type, imatrix=imatrix, pure=True, check_cancelled=check_cancelled)
    changed = {tensor.name: tensor for tensor in made.plan.tensors if tensor.reason != "kept"}
    new = [name for name, tensor in changed.items() if tensor.to_type not in tensors.get(name, {})]
    for name, error in relative_errors(source, copy, new, matrix, check_cancelled=check_cancelled).items():
        tensor = changed[name]
        tensors.setdefault(name, {})[tensor.to_type] = Stored(tensor.n_bytes, error)
    copy.unlink()


def _measure_scales(
    source: Path,
    header: GGUFHeader,
    imatrix: Path | None,
    texts: Sequence[Text],
    work: Path,
    groups: Mapping[str, Sequence[str]],
    tensors: Mapping[str, Mapping[str, Stored]],
    options: MeasureOptions,
    progress: Progress,
    check_cancelled: CheckCancelled,
) -> dict[str, float]:
    reference, copy = work / "reference", work / "probe.gguf"
    make_reference(source, reference, texts, options=options, check_cancelled=check_cancelled)
    plain = header.quantization.lower() if header.quantization in _FLOATS else "f16"
    probe = FILE_TYPES[_PROBE].base.lower()
    scales = {}
    for n_done, (group, names) in enumerate(groups.items()):
        progress(f"divergence of {group}", n_done, len(groups))
        # llama.cpp follows rules only where it quantizes: so to the probing type, and all others are told to stay.
        rules = [*(f"^{re.escape(name)}$={probe}" for name in names), f".*={plain}"]
        made = quantize_gguf(
            source, copy, _PROBE, imatrix=imatrix, overrides=rules, pure=True, check_cancelled=check_cancelled
        )
        types = {tensor.name: tensor.to_type for tensor in made.plan.tensors}
        error = sum(tensors[name][types[name]].error for name in names)
        found = measure(copy, reference=reference, options=options, check_cancelled=check_cancelled)
        assert found.divergence is not None  # a reference was given
        scales[group] = found.divergence.kl_mean / error if error else 0.0
        copy.unlink()
    return scales
