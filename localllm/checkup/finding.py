"""What a check found."""

from dataclasses import dataclass
from typing import Literal

Level = Literal["ok", "warn", "problem"]


@dataclass(frozen=True)
class Finding:
    """One line of the report.

    Attributes:
        level: ``ok``; ``warn``: it works, but could be better or deserves a look; ``problem``: something is wrong.
        text: What was found, in one line.
        hint: What to do about it; empty when there is nothing to do.
    """

    level: Level
    text: str
    hint: str = ""


@dataclass(frozen=True)
class Section:
    """A part of the report."""

    title: str
    findings: tuple[Finding, ...]
