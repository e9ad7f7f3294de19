"""``localllm``: finds the command and runs it.

``localllm --help`` has to answer at once, so this module and everything it imports is light; the module of a command
is imported only when that command was chosen.
"""

import argparse
import io
import os
import sys
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import NoReturn, Protocol, cast

from localllm import __version__
from localllm.errors import LocalLLMError, SettingsError, UsageError
from localllm.paths import Home
from localllm.sanitize import printable

FAILED, INTERRUPTED = 1, 130


class CommandModule(Protocol):
    """What a module in ``app.cli`` offers."""

    def configure(self, parser: argparse.ArgumentParser) -> None:
        """Add the command's arguments, description and examples to ``parser``."""

    def run(self, args: argparse.Namespace, home: Home) -> int:
        """Do it; return the exit code."""


@dataclass(frozen=True)
class Command:
    """A command and its line in ``localllm --help``. The lines live here, so that showing them imports no command."""

    name: str
    summary: str

    def load(self) -> CommandModule:
        """Import the command's module."""
        return cast("CommandModule", import_module(f"app.cli.{self.name}"))


COMMANDS = (
    Command("chat", "one answer, or a plain line-by-line chat; reads standard input"),
    Command("pull", "fetch a model: hub repository, package, Ollama store, file"),
    Command("models", "what is here; show, remove; what fits in this memory"),
    Command("quantize", "a smaller model: one of llama.cpp's types, or the best mix for a budget"),
    Command("serve", "OpenAI-compatible server on 127.0.0.1"),
    Command("keys", "API keys of the server: add, ls, rm"),
    Command("finetune", "train an adapter on your own rows: LoRA, DoRA, or the whole model"),
    Command("jobs", "long work: what runs, what ended and how; watch, cancel, resume"),
    Command("doctor", "what this machine can do; what is wrong; privacy"),
)
_APP = Command("tui", "the terminal app")

_EXAMPLES = """examples:
  localllm                                open the terminal app
  localllm pull starter                   fetch a small model to begin with
  localllm chat "What is gravity?"        one answer
  localllm chat smollm2-135m < notes.txt  the prompt from a file

`localllm COMMAND --help` explains a command.
"""


class Parser(argparse.ArgumentParser):
    """An argument parser whose complaints are a :class:`UsageError`, shown like every other error."""

    def error(self, message: str) -> NoReturn:
        """Raise UsageError with the parser's ``message``."""
        raise UsageError(f"{message[:1].upper()}{message[1:].rstrip('.')}.", f"See `{self.prog} --help`.")


def frame_parser() -> Parser:
    """The parser of what stands before the command's own arguments."""
    width = max(len(command.name) for command in COMMANDS)
    listing = "\n".join(f"  {command.name:{width}}  {command.summary}" for command in COMMANDS)
    parser = Parser(
        prog="localllm",
        usage="localllm [--home DIR] [COMMAND ...]",
        description=f"A private workshop for language models on one computer.\n"
        f"Without a command it opens the terminal app.\n\ncommands:\n{listing}",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"localllm {__version__}")
    _add_home(parser)
    parser.add_argument("command", nargs="?", help=argparse.SUPPRESS)
    parser.add_argument("rest", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    return parser


def command_parser(command: Command, module: CommandModule) -> Parser:
    """The parser of ``command``'s own arguments."""
    parser = Parser(
        prog=f"localllm {command.name}",
        description=f"{command.summary[:1].upper()}{command.summary[1:]}.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    module.configure(parser)
    _add_home(parser)
    return parser


def main(argv: list[str] | None = None) -> int:
    """Run one command.

    Args:
        argv: Arguments after the program's name; ``sys.argv[1:]`` by default.

    Returns:
        The exit code: 0 done, 1 failed, 2 wrong usage, 130 interrupted.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A model may write what the terminal's encoding cannot show.
            stream.reconfigure(errors="replace")
    try:
        code = _dispatch(sys.argv[1:] if argv is None else argv)
        # Flushed here, and not at the interpreter's end, so that a reader who has left is noticed in this try.
        sys.stdout.flush()
    except LocalLLMError as error:
        _print_error(error)
        return error.exit_code
    except KeyboardInterrupt:
        print(file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # `localllm models | head -1`: the reader has what it wanted. What is still buffered must go somewhere.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILED
    return code


def _dispatch(argv: Sequence[str]) -> int:
    frame = frame_parser().parse_args(argv)
    if frame.command == "help":
        return _dispatch([*frame.rest[:1], "--help"])
    command = _find(frame.command) if frame.command else _APP
    module = command.load()
    args = command_parser(command, module).parse_args(frame.rest)
    chosen = args.home or frame.home
    home = (Home(chosen.expanduser().absolute()) if chosen else Home.resolve()).ensure()
    try:
        with _logging(home):
            return module.run(args, home)
    except (LocalLLMError, BrokenPipeError):
        raise
    except Exception:  # noqa: BLE001  any other exception is a bug: it is shown whole, with where to look further
        traceback.print_exc()
        print(f"localllm: this is a bug in localllm; sorry. The logs are in {home.logs}.", file=sys.stderr)
        return FAILED


def _find(name: str) -> Command:
    for command in COMMANDS:
        if command.name == name:
            return command
    # difflib costs 4 ms, and only a mistyped command needs it.
    from difflib import get_close_matches

    close = get_close_matches(name, [command.name for command in COMMANDS], n=1)
    hint = f"Did you mean `localllm {close[0]}`?" if close else "`localllm --help` lists the commands."
    raise UsageError(f"There is no command {name!r}.", hint)


@contextmanager
def _logging(home: Home) -> Iterator[None]:
    """Log to a file inside, and leave the process's logging as it was."""
    # Settings bring pydantic (56 ms) and logging to a file brings sockets (10 ms): `--help` needs neither.
    import logging

    from localllm.logs import log_to_file
    from localllm.settings import load_settings

    try:
        level = load_settings(home.settings_file).log_level
    except SettingsError:
        # The command that needs the settings says what is wrong with them; `pull` and `doctor` must still run.
        level = "info"
    root = logging.getLogger()
    before = root.handlers[:]
    log_to_file(home, "cli", level)
    try:
        yield
    finally:
        for handler in root.handlers:
            handler.close()
        root.handlers[:] = before


def _add_home(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--home",
        type=Path,
        metavar="DIR",
        help="keep everything in DIR (default: $LOCALLLM_HOME, or the system's place)",
    )


def _print_error(error: LocalLLMError) -> None:
    print(f"localllm: {printable(error.message)}", file=sys.stderr)
    if error.hint:
        print(f"  {printable(error.hint)}", file=sys.stderr)
