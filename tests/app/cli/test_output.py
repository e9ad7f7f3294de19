import io
import threading

import pytest

from app.cli.output import Progress, display_width, human_bytes, human_seconds, print_table


class Terminal(io.StringIO):
    """A stream that says it is a terminal."""

    encoding = "utf-8"

    def isatty(self) -> bool:
        return True


class Clock:
    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.mark.parametrize(
    ("n", "text"),
    [
        (0, "0 B"),
        (999, "999 B"),
        (1000, "1.0 kB"),
        (98_362_432, "98.4 MB"),
        (999_949, "999.9 kB"),
        (999_950, "1.0 MB"),
        (7_000_000_000, "7.0 GB"),
        (3_200_000_000_000_000, "3200.0 TB"),
    ],
)
def test_bytes_are_decimal_and_never_round_to_a_thousand(n, text):
    assert human_bytes(n) == text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (0.2, "0:01"), (61, "1:01"), (3725, "1:02:05"), (-3, "0:00")]
)
def test_times(seconds, text):
    assert human_seconds(seconds) == text


def test_width_counts_cells_not_characters():
    assert display_width("abc") == 3
    assert display_width("模型") == 4
    assert display_width("e\u0301") == 1


def test_table_aligns_wide_characters_and_the_right_columns(capsys):
    print_table(("name", "size"), [("模型", "1"), ("abcdef", "22")], right=(1,))
    assert capsys.readouterr().out == "name    size\n模型       1\nabcdef    22\n"


def test_table_makes_control_characters_visible_and_keeps_one_line_a_row(capsys):
    print_table(("name",), [("a\x1b[31mb\nc",)])
    out = capsys.readouterr().out
    assert "\x1b" not in out
    assert out.count("\n") == 2


def test_table_without_rows_is_its_headers(capsys):
    print_table(("a", "b"), [])
    assert capsys.readouterr().out == "a  b\n"


def test_bar_shows_share_rate_and_time_left(monkeypatch):
    monkeypatch.setenv("COLUMNS", "100")
    stream, clock = Terminal(), Clock()
    progress = Progress("smollm2", 1000_000, stream=stream, clock=clock)
    progress.update(0)
    clock.now += 1
    progress.update(250_000)
    last = stream.getvalue().rpartition("\r")[2]
    assert " 25%" in last
    assert "250.0 kB of 1.0 MB" in last
    assert "250.0 kB/s" in last
    assert "0:03 left" in last
    assert last.count("█") == 6


def test_bar_fits_a_narrow_terminal(monkeypatch):
    monkeypatch.setenv("COLUMNS", "40")
    stream, clock = Terminal(), Clock()
    progress = Progress("a rather long label that needs room", 1000, stream=stream, clock=clock)
    for done in (0, 500):
        progress.update(done)
        clock.now += 1
    for line in stream.getvalue().split("\r\x1b[K"):
        assert display_width(line) < 40


def test_bar_is_ascii_where_the_stream_is(monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    stream = Terminal()
    stream.encoding = "ascii"
    Progress("x", 100, stream=stream).update(50)
    assert "####" in stream.getvalue()
    assert stream.getvalue().isascii()


def test_rate_counts_only_what_came_now_when_a_download_resumes():
    stream, clock = io.StringIO(), Clock()
    progress = Progress("x", 1000, stream=stream, clock=clock)
    progress.update(900)
    clock.now += 10
    progress.update(1000)
    progress.finish()
    assert stream.getvalue().endswith("x  1.0 kB in 0:10  10 B/s\n")


@pytest.mark.parametrize("dumb", [False, True])
def test_plain_lines_come_at_most_every_five_seconds(monkeypatch, dumb):
    if dumb:
        monkeypatch.setenv("TERM", "dumb")
    stream, clock = (Terminal() if dumb else io.StringIO()), Clock()
    with Progress("x", 100, unit="tok", stream=stream, clock=clock) as progress:
        for done in range(101):
            progress.update(done)
            clock.now += 0.1
    lines = stream.getvalue().splitlines()
    assert 3 <= len(lines) <= 4
    assert "\x1b" not in stream.getvalue()
    assert lines[-1].startswith("x  100 tok in 0:11")


def test_total_may_come_late_and_an_unknown_one_has_no_share():
    stream, clock = io.StringIO(), Clock()
    progress = Progress("x", unit="", stream=stream, clock=clock)
    progress.update(3)
    clock.now += 6
    progress.update(4, total=8)
    first, second = stream.getvalue().splitlines()
    assert first == "x  3"
    assert second.startswith("x   50%  4 of 8")


def test_finish_says_its_note_once_and_later_updates_are_nothing():
    stream = io.StringIO()
    progress = Progress("x", stream=stream)
    progress.finish("already here")
    progress.finish("again")
    progress.update(5)
    assert stream.getvalue() == "x  already here\n"


def test_an_exception_leaves_a_whole_line():
    stream = Terminal()

    def work():
        with Progress("x", 10, stream=stream) as progress:
            progress.update(5)
            raise ValueError("boom")

    with pytest.raises(ValueError, match="boom"):
        work()
    assert stream.getvalue().endswith("stopped\n")


def test_threads_may_update_together():
    stream = io.StringIO()
    with Progress("x", 8000, unit="", stream=stream) as progress:
        threads = [threading.Thread(target=lambda: [progress.update(n) for n in range(1000)]) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert all(line.startswith("x  ") for line in stream.getvalue().splitlines())
