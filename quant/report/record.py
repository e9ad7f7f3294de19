"""A report: what was measured of a model and of its smaller forms, what follows from it, and where it is kept."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from localllm.errors import InvalidModelError
from localllm.files import write_atomic
from localllm.models.manifest import Manifest
from localllm.paths import DIR_MODE, Home
from quant.measure.run import Quality, Speed
from quant.measure.scores import Divergence, Perplexity

# Mean KL divergence, in nats a token, up to which a smaller form is recommended: about what q4_k_m costs a model of a
# few billion weights, the size from which differences are seen in answers.
KL_LIMIT = 0.05
_FORMAT = 1

Kind = Literal["source", "model", "type"]


@dataclass(frozen=True)
class Row:
    """One model in the report.

    Attributes:
        name: ``smollm2-135m:q4_k_m`` of a model in the store, ``q4_k_m`` of a type that was only tried.
        kind: ``source``, ``model`` (in the store) or ``type`` (made for the report, and gone).
        type: ``q4_k_m``; of a model in the store, what it was quantized to where that is known.
        engine: What ran it: ``llama.cpp`` or ``mlx``.
        n_bytes: Of all its files.
        bits: Per weight, over all parameters.
        quality: Perplexity, and divergence from the source.
        speed: In tokens a second; None where it was not measured.
        notes: What a person should know about it.
        beaten_by: The name of a smaller one that diverges less, or of one as large; empty on the frontier.
    """

    name: str
    kind: Kind
    type: str
    engine: str
    n_bytes: int
    bits: float
    quality: Quality
    speed: Speed | None
    notes: tuple[str, ...] = ()
    beaten_by: str = ""

    @property
    def divergence(self) -> Divergence:
        """From the source; every row has one."""
        assert self.quality.divergence is not None
        return self.quality.divergence

    @property
    def kl(self) -> float:
        """Mean KL divergence from the source, in nats a token."""
        return self.divergence.kl_mean


@dataclass(frozen=True)
class Skipped:
    """What could not be measured, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Report:
    """What was measured of a model and of its smaller forms.

    Attributes:
        model: The source's name in the store.
        sha256: Of each of its files.
        text: What was read.
        text_sha256: Its hash.
        n_chunks, n_ctx: Chunks that were read, and tokens in one; the second half of each is scored.
        imatrix: What the importance matrix was taken from: ``default``, ``chats``, ``none``, or a file's name.
        created: ISO 8601, UTC.
        rows: The source first, then the largest first.
        skipped: What could not be measured.
        kl_limit: Up to which :attr:`recommended` goes.
    """

    model: str
    sha256: tuple[str, ...]
    text: str
    text_sha256: str
    n_chunks: int
    n_ctx: int
    imatrix: str
    created: str
    rows: tuple[Row, ...]
    skipped: tuple[Skipped, ...]
    kl_limit: float = KL_LIMIT

    @property
    def source(self) -> Row:
        """What all others are compared with."""
        return self.rows[0]

    @property
    def frontier(self) -> tuple[Row, ...]:
        """Those that none beats, the largest first; the source is one of them."""
        return tuple(row for row in self.rows if not row.beaten_by)

    @property
    def recommended(self) -> Row | None:
        """The smallest within the limit; None where nothing smaller than the source is."""
        within = [row for row in self.rows if row.kl <= self.kl_limit and row.n_bytes < self.source.n_bytes]
        return min(within, key=lambda row: (row.n_bytes, row.kl), default=None)

    @property
    def advice(self) -> str:
        """The recommendation as a sentence."""
        found, limit = self.recommended, f"a mean KL of {self.kl_limit:g} nats"
        if found is not None:
            return f"Recommended: {found.name}, the smallest within {limit} (it has {found.kl:.4f})."
        smaller = [row for row in self.rows if row.n_bytes < self.source.n_bytes]
        if not smaller:
            return "Nothing that was measured is smaller than the source."
        nearest = min(smaller, key=lambda row: row.kl)
        return f"Nothing smaller stays within {limit}; {nearest.name} comes nearest, with {nearest.kl:.4f}."

    @property
    def warnings(self) -> tuple[str, ...]:
        """A sentence for each that another beats."""
        sizes = {row.name: row.n_bytes for row in self.rows}
        said = []
        for row in self.rows:
            if row.beaten_by:
                how = "smaller" if sizes[row.beaten_by] < row.n_bytes else "as large"
                whom = "the source" if row.beaten_by == self.source.name else row.beaten_by
                said.append(f"{row.name} is no choice: {whom} is {how} and diverges less.")
        return tuple(said)

    def row_of_type(self, name: str) -> Row | None:
        """What was measured of a type: tried, or in the store."""
        return next((row for row in self.rows if row.type == name and row.kind != "source"), None)


def in_order(rows: Sequence[Row]) -> tuple[Row, ...]:
    """The source first, then the largest first, each with what beats it."""
    ordered = sorted(rows, key=lambda row: (row.kind != "source", -row.n_bytes, row.kl, row.name))
    return tuple(replace(row, beaten_by=_beaten_by(row, ordered)) for row in ordered)


def _beaten_by(row: Row, rows: Sequence[Row]) -> str:
    if row.kind == "source":
        return ""
    better = [
        other
        for other in rows
        if other.n_bytes <= row.n_bytes and other.kl <= row.kl and (other.n_bytes, other.kl) != (row.n_bytes, row.kl)
    ]
    # The smallest says most: with it, everything is gained that can be.
    return min(better, key=lambda other: (other.n_bytes, other.kl)).name if better else ""


def report_path(home: Home, model: Manifest) -> Path:
    """Where the last report on a model is kept; its plot is beside it, as ``.svg``."""
    return home.measured / "reports" / model.name / f"{model.variant}.json"


def as_json(report: Report) -> str:
    """The report as text."""
    record = {"format": _FORMAT, **asdict(report), "recommended": report.recommended and report.recommended.name}
    return json.dumps(record, indent=2, ensure_ascii=False) + "\n"


def save_report(path: Path, report: Report) -> None:
    """Write a report as JSON, atomically.

    Raises:
        DiskFullError: There is no room.
    """
    path.parent.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
    write_atomic(path, as_json(report))


def read_report(path: Path) -> Report:
    """Read what :func:`save_report` wrote.

    Raises:
        InvalidModelError: It is something else.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record.pop("format") != _FORMAT:
            raise InvalidModelError(f"{path.name} is of another version.", "Make the report again.")
        record.pop("recommended")
        rows = tuple(_row(row) for row in record.pop("rows"))
        skipped = tuple(Skipped(**item) for item in record.pop("skipped"))
        if not rows:
            raise InvalidModelError(f"{path.name} is a report on nothing.", "Make the report again.")
        return Report(**{**record, "sha256": tuple(record["sha256"])}, rows=rows, skipped=skipped)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise InvalidModelError(f"{path.name} holds no report: {error}.", "Make the report again.") from error


def kept_report(home: Home, model: Manifest) -> Report | None:
    """The last report on a model; None where there is none that can be read, or the model was another one then."""
    try:
        report = read_report(report_path(home, model))
    except InvalidModelError:
        return None
    return report if report.sha256 == tuple(file.sha256 for file in model.files) else None


def quality_of(record: dict[str, dict[str, float]]) -> Quality:
    """From what ``asdict`` has made of one."""
    return Quality(Perplexity(**record["perplexity"]), Divergence(**record["divergence"]))  # type: ignore[arg-type]  # n_tokens is a whole number there


def _row(record: dict[str, object]) -> Row:
    quality, speed, notes = record.pop("quality"), record.pop("speed"), record.pop("notes")
    assert isinstance(quality, dict)
    assert isinstance(notes, list)
    found = Speed(**speed) if isinstance(speed, dict) else None
    return Row(**record, quality=quality_of(quality), speed=found, notes=tuple(notes))  # type: ignore[arg-type]  # JSON: wrong types were written by nobody
