"""What was measured of one model, kept as JSON: a second report, or one that goes on, measures only what is new."""

import hashlib
import json
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from localllm.files import write_atomic
from localllm.models.manifest import Manifest
from localllm.paths import DIR_MODE
from quant.measure.run import Quality, Speed
from quant.report.record import quality_of

_FORMAT = 1


@dataclass(frozen=True)
class Measured:
    """What was measured of one model.

    Attributes:
        n_bytes: Of all its files.
        bits: Per weight, over all parameters.
        quality: With the divergence from the source.
        speed: None where it was not measured.
        notes: What llama.cpp or mlx-lm said when it was made.
    """

    n_bytes: int
    bits: float
    quality: Quality
    speed: Speed | None = None
    notes: tuple[str, ...] = ()


class Shelf:
    """A directory of :class:`Measured`, each named after all that it depends on.

    Args:
        directory: Made where it is not there.
        conditions: What all of them depend on: the source's files, the text, the chunks. The versions of the libraries
            that make and run models are added.
    """

    def __init__(self, directory: Path, conditions: dict[str, Any]) -> None:
        self._directory = directory
        self._conditions = conditions | {name: version(name) for name in ("llama-cpp-python", "mlx-lm")}

    def key(self, subject: dict[str, Any]) -> str:
        """The name of what is measured under these conditions; ``subject`` is JSON."""
        text = json.dumps([self._conditions, subject], sort_keys=True)
        return hashlib.sha256(text.encode("utf-8", "replace")).hexdigest()[:32]

    def find(self, subject: dict[str, Any]) -> Measured | None:
        """What was measured before; None where there is nothing that can be read."""
        try:
            record = json.loads(self._path(subject).read_text(encoding="utf-8"))
            if record.pop("format") != _FORMAT:
                return None
            speed, notes = record.pop("speed"), tuple(record.pop("notes"))
            quality = quality_of(record.pop("quality"))
            return Measured(**record, quality=quality, speed=Speed(**speed) if speed else None, notes=notes)
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None  # it is measured again, and replaced

    def keep(self, subject: dict[str, Any], measured: Measured) -> None:
        """Write it down, atomically.

        Raises:
            DiskFullError: There is no room.
        """
        self._directory.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
        write_atomic(self._path(subject), json.dumps({"format": _FORMAT, **asdict(measured)}))

    def _path(self, subject: dict[str, Any]) -> Path:
        return self._directory / f"{self.key(subject)}.json"


def digests(model: Manifest) -> list[str]:
    """SHA-256 of each file of a model."""
    return [file.sha256 for file in model.files]
