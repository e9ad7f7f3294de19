"""Writes docs/commands.md from the commands' own parsers.

    .venv/bin/python scripts/commands_md.py

Tables of options are written here and not taken from argparse's help, whose layout changes with Python's version.
"""

import argparse
import os
from collections.abc import Iterator
from pathlib import Path

from app.cli.main import COMMANDS, command_parser, frame_parser

TARGET = Path(__file__).resolve().parent.parent / "docs" / "commands.md"
_HEAD = """# Commands

<!-- Written by `make docs` from the commands themselves; edit their help texts, not this file. -->

Results go to standard output, progress and hints to standard error. Exit codes: 0 done, 1 failed, 2 wrong usage,
130 interrupted. `NO_COLOR` is honoured; without a terminal there are plain lines in the place of bars.
Every command also takes `--home DIR` and `-h`, `--help`.
"""


def render() -> str:
    """The whole page."""
    parts = [_HEAD, "## localllm\n", "Without a command: the terminal app.\n", _fence(frame_parser().epilog or "")]
    for command in COMMANDS:
        parts.extend(_section(command_parser(command, command.load()), level=2))
    return "\n".join(parts)


def _section(parser: argparse.ArgumentParser, level: int, summary: str = "") -> Iterator[str]:
    yield f"{'#' * level} {parser.prog}\n"
    if text := parser.description or f"{summary[:1].upper()}{summary[1:]}.":
        yield f"{text}\n"
    yield f"    {' '.join(parser.format_usage().split()).removeprefix('usage: ')}\n"
    nested = [action for action in parser._actions if isinstance(action, argparse._SubParsersAction)]
    rows = [_row(action) for action in parser._actions if action not in nested and _is_shown(action)]
    if rows:
        yield "\n".join(["| | |", "|---|---|", *rows]) + "\n"
    if parser.epilog:
        yield _fence(parser.epilog)
    for action in nested:
        summaries = {choice.dest: choice.help or "" for choice in action._choices_actions}
        for name, child in action.choices.items():
            yield from _section(child, level + 1, summaries.get(name, ""))


def _is_shown(action: argparse.Action) -> bool:
    return action.help != argparse.SUPPRESS and action.dest not in ("help", "home")


def _row(action: argparse.Action) -> str:
    metavar = action.metavar or (action.dest.upper() if action.nargs != 0 else "")
    value = " ".join(metavar) if isinstance(metavar, tuple) else metavar
    if action.choices:
        value = "{" + ",".join(map(str, action.choices)) + "}"
    names = ", ".join(f"`{name}`" for name in action.option_strings)
    shown = f"{names} `{value}`" if names and value else names or f"`{value}`"
    help_text = (action.help or "") % {**vars(action), "prog": "localllm"}
    return f"| {shown} | {' '.join(help_text.split())} |".replace("| |", "|  |")


def _fence(text: str) -> str:
    return f"```\n{text.strip()}\n```\n"


if __name__ == "__main__":
    # Python 3.14 colours its usage lines on a terminal.
    os.environ["NO_COLOR"] = "1"
    TARGET.write_text(render(), encoding="utf-8")
