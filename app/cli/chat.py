"""``localllm chat``: one answer to a prompt, or a chat line by line."""

import argparse
import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, TextIO, cast

from localllm.errors import ModelNotFoundError, RequestError, UsageError
from localllm.models.names import parse_model_name
from localllm.paths import Home
from localllm.sanitize import printable
from serve.events import StreamDone, StreamEvent, TextDelta

if TYPE_CHECKING:
    from collections.abc import AsyncGenerator

    from app.cli.line_chat import ClosableClient
    from localllm.settings import Settings
    from serve.client import ChatOptions
    from serve.registry import Registry, Served

_EXAMPLES = """examples:
  localllm chat "What is gravity?"               one answer from the default model
  localllm chat smollm2-135m "What is gravity?"  from a certain one
  localllm chat "Sum this up:" < notes.txt       prompt, then standard input
  localllm chat                                  talk line by line (/help, /quit)
"""

_NOT_TEXT = "The prompt is not text in UTF-8."


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments of ``localllm chat``."""
    parser.usage = "localllm chat [MODEL] [PROMPT] [options]"
    parser.description = (
        "One answer when a prompt is given, as an argument or on standard input; else a chat line by line, without\n"
        "any full-screen drawing. A single answer is not kept; a chat line by line is a conversation like those\n"
        "of the app. The answer goes to standard output, all else to standard error."
    )
    parser.epilog = _EXAMPLES
    parser.add_argument(
        "words",
        nargs="*",
        metavar="MODEL PROMPT",
        help="a model of `localllm models` (or MODEL+ADAPTER), a prompt in quotes, or both",
    )
    parser.add_argument("--system", metavar="TEXT", help="instructions put before the conversation")
    parser.add_argument("--temperature", type=float, metavar="T", help="0 is greedy; higher is more varied")
    parser.add_argument("--top-k", type=int, metavar="K", help="choose among the K most likely tokens; 0: all")
    parser.add_argument("--top-p", type=float, metavar="P", help="choose among tokens of total probability P")
    parser.add_argument("--min-p", type=float, metavar="P", help="drop tokens less likely than P times the best one")
    parser.add_argument("--repeat-penalty", type=float, metavar="R", help="above 1 discourages repetition")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="longest answer; 0: as long as the context allows")
    parser.add_argument("--seed", type=int, metavar="N", help="the same seed gives the same answer again")
    parser.add_argument("--stop", action="append", default=[], metavar="TEXT", help="end the answer before TEXT")
    parser.add_argument(
        "--stats",
        action=argparse.BooleanOptionalAction,
        help="print speed and token counts to standard error (default: on a terminal)",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object with the text and the usage")


def run(args: argparse.Namespace, home: Home) -> int:
    """Answer once, or chat until the person ends it.

    Raises:
        UsageError: The words make no sense, or standard input is empty.
        LocalLLMError: Whatever kept the model from answering.
    """
    # Deferred: `localllm chat --help` needs no pydantic (56 ms) and no HTTP client (100 ms).
    from localllm.adapters import AdapterStore
    from localllm.models.store import ModelStore
    from localllm.settings import load_settings
    from serve.discovery import connect
    from serve.registry import Registry

    flags = {"temperature": args.temperature, "max_tokens": args.max_tokens, "system_prompt": args.system}
    settings = load_settings(home.settings_file, flags=flags)
    registry = Registry(ModelStore(home), AdapterStore(home))
    asked = read_words(args.words, lambda name: _is_model(registry, name))
    prompt = with_standard_input(asked.prompt, sys.stdin)
    require_text(prompt or "", settings.system_prompt, *args.stop)
    if args.json and prompt is None:
        raise UsageError("--json needs a prompt.", "Give one as an argument or on standard input.")
    model = find_model(registry, home, asked.model or settings.model)
    options = _options(args, settings)
    show_stats = sys.stderr.isatty() if args.stats is None else bool(args.stats)

    async def connected() -> "ClosableClient":
        return await connect(home, settings, on_status=lambda status: print(printable(status), file=sys.stderr))

    if prompt is None:
        _chat_by_lines(home, registry, connected, model, options, settings.system_prompt, show_stats)
        return 0
    messages = [{"role": "system", "content": settings.system_prompt}] if settings.system_prompt else []
    messages.append({"role": "user", "content": prompt})
    asyncio.run(_answer(connected, model.name, messages, options, as_json=args.json, show_stats=show_stats))
    return 0


@dataclass(frozen=True)
class Asked:
    """What the positional words mean; an empty model is the default one, no prompt is None."""

    model: str
    prompt: str | None


def read_words(words: Sequence[str], is_model: Callable[[str], bool]) -> Asked:
    """Tell model and prompt apart.

    A single word is the model if there is one of that name, and the prompt if it cannot be a name at all.

    Raises:
        UsageError: More than two words, an empty prompt, or a word that could be either.
    """
    match list(words):
        case []:
            return Asked("", None)
        case [*_, last] if not last.strip():
            raise UsageError("The prompt is empty.", "Leave it out to chat line by line.")
        case [model, prompt]:
            return Asked(model, prompt)
        case [word] if is_model(word):
            return Asked(word, None)
        case [word] if not _could_be_name(word):
            return Asked("", word)
        case [word]:
            raise UsageError(
                f"There is no model {word!r} here.",
                f"If it is a model, `localllm models` lists what is here and `localllm pull` fetches more; "
                f"if it is the prompt, name the model too: localllm chat starter {word!r}.",
            )
        case _:
            raise UsageError(
                "There are more words than a model and a prompt.",
                f'Put the prompt in quotes: localllm chat "{" ".join(words)}".',
            )


def with_standard_input(prompt: str | None, stdin: TextIO) -> str | None:
    """The prompt with what stands on standard input after it; None when a person sits there and gave none.

    Raises:
        UsageError: Standard input is no terminal, and neither it nor the prompt holds text.
    """
    if stdin.isatty():
        return prompt
    try:
        piped = stdin.read().strip()
    except UnicodeDecodeError as error:
        raise UsageError(_NOT_TEXT) from error
    if not piped and prompt is None:
        raise UsageError("There is no prompt, and standard input is empty.", 'For example: localllm chat "Hello!"')
    return "\n\n".join(part for part in (prompt, piped) if part)


def require_text(*texts: str) -> None:
    """Refuse bytes that are no text: Python keeps those of arguments, and of a C locale's input, as surrogates.

    Raises:
        UsageError: A text cannot be encoded.
    """
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError as error:
        raise UsageError(_NOT_TEXT) from error


def find_model(registry: "Registry", home: Home, name: str) -> "Served":
    """The model of that name, ``+adapter`` and all; where a person can answer, offer to fetch the starter model.

    Raises:
        ModelNotFoundError: It is not here, and was not fetched.
    """
    try:
        return registry.resolve(name)
    except ModelNotFoundError:
        if name != "starter" or not (sys.stdin.isatty() and sys.stderr.isatty()):
            raise
        print("The starter model (98 MB) is not here yet. Fetch it now? [Y/n] ", end="", file=sys.stderr, flush=True)
        if input().strip().lower() not in ("", "y", "yes"):
            raise
    # Deferred: the sources bring subprocess and zipfile (20 ms), and this happens once.
    from app.cli.follow_job import run_job
    from app.cli.pull import PullView
    from localllm.models.pull_job import pull_spec

    run_job(home, pull_spec(name), show=lambda _: None, view=PullView())
    return registry.resolve(name)


async def answer_once(
    client: "ClosableClient",
    model: str,
    messages: Sequence[Mapping[str, str]],
    options: "ChatOptions",
    on_text: Callable[[str], None],
) -> StreamDone:
    """Stream one answer into ``on_text``; return its counts.

    Raises:
        LocalLLMError: As the server found.
    """
    # The protocol promises an iterator that can be closed; every such one in Python is a generator.
    stream = cast("AsyncGenerator[StreamEvent, None]", client.stream_chat(model, messages, options))
    async with aclosing(stream):
        async for event in stream:
            match event:
                case TextDelta(text):
                    on_text(text)
                case StreamDone():
                    return event
    raise AssertionError("a stream ends with StreamDone or an error")


async def _answer(
    connected: Callable[[], Awaitable["ClosableClient"]],
    model: str,
    messages: Sequence[Mapping[str, str]],
    options: "ChatOptions",
    *,
    as_json: bool,
    show_stats: bool,
) -> None:
    # Deferred for `--help`, as in run().
    from app.cli.line_chat import stats_line

    pieces: list[str] = []

    def on_text(text: str) -> None:
        pieces.append(text)
        if not as_json:
            print(printable(text), end="", flush=True)

    client = await connected()
    try:
        done = await answer_once(client, model, messages, options, on_text)
    finally:
        if pieces and not as_json:
            print(flush=True)  # an error or Ctrl-C must not stand on the answer's last line
        await client.aclose()
    if as_json:
        print(json.dumps(_record("".join(pieces), done)))
    if show_stats:
        print(stats_line(done), file=sys.stderr)


def _chat_by_lines(
    home: Home,
    registry: "Registry",
    connected: Callable[[], Awaitable["ClosableClient"]],
    model: "Served",
    options: "ChatOptions",
    system_prompt: str,
    show_stats: bool,
) -> None:
    # Deferred: sqlite3 costs 10 ms, and a single answer needs no conversations.
    from app.cli.line_chat import ConnectOnDemand, LineChat
    from localllm.conversations import ConversationStore

    conversations = ConversationStore(home.database)
    try:
        LineChat(
            registry,
            conversations,
            ConnectOnDemand(connected),
            model,
            options,
            system_prompt=system_prompt,
            show_stats=show_stats,
        ).run()
    finally:
        conversations.close()


def _options(args: argparse.Namespace, settings: "Settings") -> "ChatOptions":
    # Deferred: the client's module brings the error tables of the HTTP side.
    from serve.client import ChatOptions

    return ChatOptions(
        temperature=settings.temperature,
        max_tokens=settings.max_tokens or None,
        seed=args.seed,
        stop=tuple(args.stop),
        top_p=args.top_p,
        top_k=args.top_k,
        min_p=args.min_p,
        repeat_penalty=args.repeat_penalty,
    )


def _record(text: str, done: StreamDone) -> dict[str, object]:
    """What ``--json`` prints. JSON escapes whatever is not ASCII, so the text can stay exactly as it came."""
    return {
        "model": done.model,
        "text": text,
        "finish_reason": done.reason,
        "usage": {
            "prompt_tokens": done.n_prompt,
            "cached_tokens": done.n_cached,
            "completion_tokens": done.n_completion,
            "first_token_seconds": round(done.prompt_seconds, 4),
            "tokens_per_second": round(done.tokens_per_second, 2),
        },
    }


def _could_be_name(word: str) -> bool:
    try:
        for part in word.split("+"):
            parse_model_name(part)
    except UsageError:
        return False
    return True


def _is_model(registry: "Registry", word: str) -> bool:
    try:
        registry.resolve(word)
    except (ModelNotFoundError, RequestError):
        return False
    return True
