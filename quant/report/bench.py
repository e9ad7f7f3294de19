"""Measuring one candidate after the other against the same source, on the same text; what is known is not repeated."""

import shutil
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from localllm.errors import InvalidModelError
from localllm.jobs.context import JobContext
from localllm.jobs.events import Progress
from localllm.models.manifest import Manifest
from localllm.models.measured import measured_stem, quality_directory
from localllm.models.transfer import sha256_of
from localllm.paths import DIR_MODE
from quant.child import Progress as OnProgress
from quant.importance import ImportanceChoice
from quant.measure.reference import Reference
from quant.measure.run import MeasureOptions, make_reference, measure, measure_speed
from quant.report.kept import Measured, Shelf, digests
from quant.report.record import Row
from quant.report.subjects import Stock, Subject
from quant.report.text import JudgingText

_REFERENCE = "reference"
_IN_BYTES = ("check", "convert")


@dataclass(frozen=True)
class Conditions:
    """How all are measured.

    Attributes:
        text: What they read.
        imatrix: What the importance matrix is taken from.
        options: The chunks.
        speed: Whether speed is measured too.
    """

    text: JudgingText
    imatrix: ImportanceChoice
    options: MeasureOptions
    speed: bool


class Bench:
    """Measures one subject after the other.

    Args:
        context: The job.
        source: What all are compared with.
        conditions: How.
        work: A directory for what is thrown away.
    """

    def __init__(self, context: JobContext, source: Manifest, conditions: Conditions, work: Path) -> None:
        self._context, self._conditions = context, conditions
        self._stage = ""
        self._stock = Stock(context, source, conditions.imatrix, work, self._telling)
        options = conditions.options
        given = {"source": digests(source), "text": conditions.text.sha256}
        kept = quality_directory(context.home)
        self._shelf = Shelf(kept, {**given, "n_ctx": options.n_ctx, "chunks": options.max_chunks})
        # What a source predicts for a text holds the text: a person's own stays in the job, and goes with its end.
        self._reference = context.directory / _REFERENCE
        if conditions.text.is_ours:
            self._reference = kept / f"{measured_stem(source)}-{self._shelf.key({_REFERENCE: 1})}"

    def measure(self, subject: Subject, stage: str) -> Row:
        """Measure what was not measured before.

        Args:
            subject: What.
            stage: What the bar says of it.

        Raises:
            InvalidModelError: A model of the store is damaged.
            QuantizeError: It cannot be made so, or not be compared with the source.
            DiskFullError: There is no room.
        """
        self._stage = stage
        key = self._key(subject)
        found = self._shelf.find(key)
        if found is None or (self._conditions.speed and found.speed is None):
            found = self._measure(subject, key, found)
        engine = "mlx" if subject.is_mlx else "llama.cpp"
        speed = found.speed if self._conditions.speed else None
        facts = (found.n_bytes, found.bits, found.quality, speed, found.notes)
        return Row(subject.name, subject.kind, subject.type, engine, *facts)

    def close(self) -> None:
        """Leave nothing of a person's own text."""
        if not self._conditions.text.is_ours:
            shutil.rmtree(self._reference, ignore_errors=True)

    def _key(self, subject: Subject) -> dict[str, Any]:
        if subject.model is not None:
            return {"files": digests(subject.model), "source": subject.kind == "source"}
        imatrix = self._stock.imatrix_for(subject.type)
        return {"type": subject.type, "imatrix": sha256_of(imatrix, lambda _: None) if imatrix else ""}

    def _measure(self, subject: Subject, key: dict[str, Any], found: Measured | None) -> Measured:
        check = self._context.check_cancelled
        if found is None:
            self._make_reference()
        with self._stock.files(subject) as files:
            if found is None:
                quality = measure(
                    files.path,
                    reference=self._reference,
                    options=self._conditions.options,
                    progress=self._telling("score"),
                    check_cancelled=check,
                )
                found = Measured(files.n_bytes, files.bits, quality, None, files.notes)
                self._shelf.keep(key, found)
            if self._conditions.speed:
                self._telling("speed")("", 0, 1)
                found = replace(found, speed=measure_speed(files.path, check_cancelled=check))
                self._shelf.keep(key, found)
                self._telling("speed")("", 1, 1)
        return found

    def _make_reference(self) -> None:
        """What the source predicts, on the disk; made once."""
        try:
            Reference.open(self._reference)
        except InvalidModelError:
            self._reference.parent.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
            make_reference(
                self._stock.gguf,
                self._reference,
                self._conditions.text.texts,
                options=self._conditions.options,
                progress=self._telling("read the source"),
                check_cancelled=self._context.check_cancelled,
            )

    def _telling(self, deed: str) -> OnProgress:
        unit = "B" if deed in _IN_BYTES else ""
        return lambda _item, done, total: self._context.emit(Progress(self._stage, done, total, deed, unit))
