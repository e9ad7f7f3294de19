"""``localllm`` without a command: the terminal app."""

import argparse
import sys

from localllm.errors import UsageError
from localllm.paths import Home


def configure(parser: argparse.ArgumentParser) -> None:
    """The app takes no arguments of its own."""
    parser.prog = "localllm"


def run(args: argparse.Namespace, home: Home) -> int:  # noqa: ARG001  the shape that every command has
    """Open the app on this terminal.

    Raises:
        UsageError: Standard input or output is not a terminal.
    """
    if not (sys.stdin.isatty() and sys.stdout.isatty()):
        raise UsageError(
            "The app needs a terminal, and standard input or output is not one.",
            'Ask one question with `localllm chat "…"`, or see `localllm --help`.',
        )
    # Textual costs 330 ms; only the app pays for it.
    from app.tui.app import run_app
    from localllm.settings import load_settings

    return run_app(home, load_settings(home.settings_file))
