r"""A plot in a terminal: points in data coordinates become lines of text, drawn with braille dots (2 x 4 in a cell).

Nothing here knows Textual. A widget makes its Content of what :func:`plot` returns::

    lines = plot([Series(train, style="$accent"), Series(held_out, mark="o")], 60, 12, Axis("step"), Axis("loss"))
    Content("\n").join(Content.assemble(*line) for line in lines)

Series stay apart without colour: give those beyond the first a ``mark``.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby, pairwise

Point = tuple[float, float]
Run = tuple[str, str]  # text of neighbouring cells, and their style
Line = list[Run]

_DOTS = ((0x01, 0x08), (0x02, 0x10), (0x04, 0x20), (0x40, 0x80))  # bits of a braille cell, by row and column
_BRAILLE = 0x2800
_LEAST_WIDTH, _LEAST_HEIGHT = 12, 4
_TICK_ROWS, _TICK_CELLS = 3, 12  # room for a tick of either axis
_UNITS = ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k"))


@dataclass(frozen=True)
class Axis:
    """One of the two.

    Attributes:
        label: What it measures, in a word or two.
        log: Equal ratios are equally far apart; points at or below zero are left out.
        low, high: Its ends; those of the points by default.
    """

    label: str = ""
    log: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Series:
    """Points that belong together.

    Attributes:
        points: x and y; those that are no finite numbers are left out.
        mark: One character of one cell at each point; dots where empty.
        joined: A line of dots leads from each point to the next.
        style: Of its cells, as Textual takes it.
        labels: A few words beside each point, where there is room for them; characters of one cell.
    """

    points: Sequence[Point]
    mark: str = ""
    joined: bool = True
    style: str = ""
    labels: Sequence[str] = ()


_LINEAR = Axis()


def plot(
    series: Sequence[Series],
    width: int,
    height: int,
    x: Axis = _LINEAR,
    y: Axis = _LINEAR,
    *,
    axis_style: str = "",
) -> list[Line]:
    """Draw series, one over the other, with numbered axes.

    Any number of points may be given: what falls into one column of dots is drawn as its first, lowest, highest and
    last point, which gives the same picture.

    Args:
        series: The last one lies on top.
        width: Of the whole, in cells; nothing is drawn in less than 12.
        height: As ``width``; at least 4.
        x: The horizontal axis.
        y: The vertical axis.
        axis_style: Of axes and numbers.

    Returns:
        ``height`` lines of ``width`` cells.
    """
    if width < _LEAST_WIDTH or height < _LEAST_HEIGHT:
        return [[(" " * max(0, width), "")] for _ in range(max(0, height))]
    drawn = [_seen(one, x, y) for one in series]
    points = [point for one in drawn for point in one.points]
    across = _scale([point[0] for point in points], x)
    up = _scale([point[1] for point in points], y)
    n_rows = height - 2 - bool(y.label)
    y_ticks = up.ticks(max(2, n_rows // _TICK_ROWS)) if points else []
    margin = min(max([len(text) for _, text in y_ticks], default=0), width - _LEAST_WIDTH // 2)
    canvas = _Canvas(width - margin - 1, n_rows, across, up)
    for one in drawn:
        canvas.draw(one)
    for one in drawn:
        canvas.name(one)
    numbered = {canvas.row(value): text for value, text in y_ticks}
    lines: list[Line] = [[(y.label[:width].ljust(width), axis_style)]] if y.label else []
    for row, cells in enumerate(canvas.lines()):
        edge = f"{numbered.get(row, '')[:margin]:>{margin}}{'┤' if row in numbered else '│'}"
        lines.append([(edge, axis_style), *cells])
    x_ticks = across.ticks(max(2, canvas.width // _TICK_CELLS)) if points else []
    rule, numbers = _x_axis(canvas, x_ticks, x.label, margin + 1)
    return [*lines, [(f"{'└':>{margin + 1}}{rule}", axis_style)], [(numbers, axis_style)]]


def as_text(lines: Sequence[Line]) -> str:
    """The picture without styles."""
    return "\n".join("".join(text for text, _ in line) for line in lines)


@dataclass(frozen=True)
class _Scale:
    """Maps values to 0 … 1."""

    low: float
    high: float
    log: bool

    def place(self, value: float) -> float:
        low, high, value = (
            (math.log(number) for number in (self.low, self.high, value)) if self.log else (self.low, self.high, value)
        )
        return (value - low) / (high - low)

    def ticks(self, wanted: int) -> list[tuple[float, str]]:
        """About ``wanted`` round values within, two at least: one number would say nothing of the scale."""
        values = _round_powers(self.low, self.high, wanted) if self.log else []
        if len(values) >= 2:
            return [(value, _number(value, value)) for value in values]
        for closer in (1, 2, 4):  # also for a logarithmic axis that spans less than a few round numbers
            step = _round_step((self.high - self.low) / (wanted * closer))
            first = math.ceil(self.low / step - 1e-9)
            values = [number * step for number in range(first, math.floor(self.high / step + 1e-9) + 1)]
            if len(values) >= 2:
                break
        return [(value, _number(value, step)) for value in values]


def _scale(values: Sequence[float], axis: Axis) -> _Scale:
    low = axis.low if axis.low is not None else min(values, default=1.0)
    high = axis.high if axis.high is not None else max(values, default=low)
    if high <= low:  # one value: it lies in the middle
        low, high = (low / 2, low * 2) if axis.log else (low - (abs(low) or 1) * 0.1, low + (abs(low) or 1) * 0.1)
    return _Scale(low, high, axis.log)


def _seen(one: Series, x: Axis, y: Axis) -> Series:
    """The series with the points that its axes can show, and their labels."""

    def fits(value: float, axis: Axis) -> bool:
        within = (axis.low is None or value >= axis.low) and (axis.high is None or value <= axis.high)
        return math.isfinite(value) and within and (value > 0 or not axis.log)

    kept = [number for number, point in enumerate(one.points) if fits(point[0], x) and fits(point[1], y)]
    labels = [one.labels[number] if number < len(one.labels) else "" for number in kept] if one.labels else ()
    return Series([one.points[number] for number in kept], one.mark, one.joined, one.style, labels)


class _Canvas:
    """The cells within the axes."""

    def __init__(self, width: int, height: int, across: _Scale, up: _Scale) -> None:
        self.width, self.height = width, height
        self._across, self._up = across, up
        self._bits = [[0] * width for _ in range(height)]
        self._marks = [[""] * width for _ in range(height)]
        self._styles = [[""] * width for _ in range(height)]

    def column(self, value: float) -> int:
        """The cell of a value of x."""
        return self._dot(value, 0)[0] // 2

    def row(self, value: float) -> int:
        """The cell of a value of y."""
        return self._dot(self._across.low, value, y_known=True)[1] // 4

    def draw(self, one: Series) -> None:
        """Draw a series over what is there."""
        dots = [self._dot(*point, y_known=True) for point in one.points]
        if one.joined:
            thin = _first_lowest_highest_last(dots)
            for start, end in pairwise(thin):
                self._line(start, end, one.style)
        for dot in dict.fromkeys(dots):
            self._put(dot, one.style, one.mark)

    def name(self, one: Series) -> None:
        """Write a series' labels, which cover nothing: right of their points, left of them, or a row off."""
        for point, label in zip(one.points, one.labels, strict=False):
            dot = self._dot(*point, y_known=True)
            row, column = dot[1] // 4, dot[0] // 2
            places = ((row, column + 2), (row, column - 1 - len(label)), (row - 1, column + 1), (row + 1, column + 1))
            any(self._write(place, column, label, one.style) for place, column in places)

    def lines(self) -> list[Line]:
        """Each row's runs of cells of one style."""
        rows: list[Line] = []
        for marks, bits, styles in zip(self._marks, self._bits, self._styles, strict=True):
            chars = [mark or (chr(_BRAILLE + dots) if dots else " ") for mark, dots in zip(marks, bits, strict=True)]
            runs = groupby(zip(chars, styles, strict=True), key=lambda cell: cell[1])
            rows.append([("".join(char for char, _ in cells), style) for style, cells in runs])
        return rows

    def _dot(self, x: float, y: float, *, y_known: bool = False) -> tuple[int, int]:
        right = round(self._across.place(x) * (2 * self.width - 1))
        down = round((1 - self._up.place(y)) * (4 * self.height - 1)) if y_known else 0
        return min(max(right, 0), 2 * self.width - 1), min(max(down, 0), 4 * self.height - 1)

    def _put(self, dot: tuple[int, int], style: str, mark: str = "") -> None:
        row, column = dot[1] // 4, dot[0] // 2
        if self._marks[row][column] and not mark:
            return  # dots do not cover a mark
        self._bits[row][column] |= _DOTS[dot[1] % 4][dot[0] % 2]
        self._styles[row][column] = style
        if mark:
            self._marks[row][column] = mark

    def _line(self, start: tuple[int, int], end: tuple[int, int], style: str) -> None:
        n = max(abs(end[0] - start[0]), abs(end[1] - start[1]))
        for step in range(n + 1):
            share = step / n if n else 0.0
            dot = (round(start[0] + (end[0] - start[0]) * share), round(start[1] + (end[1] - start[1]) * share))
            self._put(dot, style)

    def _write(self, row: int, column: int, text: str, style: str) -> bool:
        cells = range(column, column + len(text))
        if not (0 <= row < self.height and column >= 0 and cells.stop <= self.width):
            return False
        if any(self._marks[row][cell] for cell in cells):
            return False
        for cell, char in zip(cells, text, strict=True):
            self._marks[row][cell], self._styles[row][cell] = char, style
        return True


def _first_lowest_highest_last(dots: Sequence[tuple[int, int]]) -> list[tuple[int, int]]:
    """Of neighbours in one column the four that say how a line runs through it."""
    thin: list[tuple[int, int]] = []
    for _, group in groupby(dots, key=lambda dot: dot[0]):
        column = list(group)
        thin += [column[0], min(column, key=_height), max(column, key=_height), column[-1]]
    return [dot for dot, _ in groupby(thin)]


def _height(dot: tuple[int, int]) -> int:
    return dot[1]


def _x_axis(canvas: _Canvas, ticks: Sequence[tuple[float, str]], label: str, margin: int) -> tuple[str, str]:
    """The rule below the plot, and the numbers below the rule with the label at the right end."""
    rule, width = ["─"] * canvas.width, margin + canvas.width
    shown = label[: max(0, width - margin - 4)]
    numbers = [" "] * (width - len(shown)) + list(shown)
    free = width - len(shown) - bool(shown)
    taken = 0
    for value, text in ticks:
        column = canvas.column(value)
        start = max(margin + column - (len(text) - 1) // 2, 0)
        rule[column] = "┬"
        if start >= taken and start + len(text) <= free:
            numbers[start : start + len(text)] = text
            taken = start + len(text) + 1
    return "".join(rule), "".join(numbers)


def _round_step(least: float) -> float:
    """1, 2 or 5 times a power of ten, at least ``least``."""
    power: float = 10.0 ** math.floor(math.log10(least))
    return next((factor * power for factor in (1, 2, 5) if factor * power >= least * (1 - 1e-9)), 10 * power)


def _round_powers(low: float, high: float, wanted: int) -> list[float]:
    """Round values of a logarithmic axis: powers of ten, with their multiples where there is room."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    values: list[float] = []
    for factors in ((1,), (1, 3), (1, 2, 5)):
        found = [factor * 10.0**exponent for exponent in exponents for factor in factors]
        inside = [value for value in found if low <= value <= high]
        if not values or len(inside) <= wanted:
            values = inside
    return values[:: max(1, -(-len(values) // max(1, wanted)))]


def _number(value: float, step: float) -> str:
    """``value`` with the digits that ``step`` asks for: ``0.25``, ``1500``, ``20k``."""
    for size, unit in _UNITS:
        if abs(value) >= 10 * size or (abs(value) >= size and not step % size):
            return f"{_digits(value / size, step / size)}{unit}"
    return _digits(value, step)


def _digits(value: float, step: float) -> str:
    decimals = max(0, -math.floor(math.log10(step) + 1e-9))
    return f"{value:.{decimals}f}" if decimals <= 6 else f"{value:.3g}"
