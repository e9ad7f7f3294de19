"""Native work in a child process: a failed assert or a crash in llama.cpp or MLX ends the child and nothing else.

The parent sends JSON lines on the child's standard input; the child answers each with ``progress`` lines and then
``result`` or ``error``. The other side is :mod:`quant.child_side`. A child whose parent is gone ends itself.
"""

import json
import os
import selectors
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Mapping
from typing import IO, Any

from localllm import errors
from localllm.errors import LocalLLMError, QuantizeError
from localllm.native.crashes import how_it_ended, mend_hint
from localllm.native.environment import native_environment
from localllm.paths import Home
from localllm.sanitize import one_line

Progress = Callable[[str, int, int | None], None]
CheckCancelled = Callable[[], None]

_POLL_SECONDS = 0.1
_LAST_WORDS = 4096  # bytes of the log that are looked at
# ggml would start a debugger on itself before it aborts, which takes minutes and prints thousands of lines. And
# OpenMP's threads would spin for milliseconds while they wait for each other: beside a compiler llama.cpp then crawls.
_ENVIRONMENT = {"GGML_NO_BACKTRACE": "1", "GOMP_SPINCOUNT": "1000"}


def no_progress(stage: str, done: int, total: int | None) -> None:
    """A ``progress`` that shows nothing."""


def never_cancelled() -> None:
    """A ``check_cancelled`` for work that nobody cancels."""


class Child:
    """``python -P -m module``, from ``with`` to its end; it may be asked more than once, which saves its start.

    Args:
        module: A module whose ``main`` calls :func:`quant.child_side.answer`.
        what: Completes "… ended unexpectedly" when the child crashes (``quantizing tiny.gguf``).
    """

    def __init__(self, module: str, what: str) -> None:
        self._module = module
        self._what = what

    def __enter__(self) -> "Child":
        self._log = tempfile.TemporaryFile()
        self._process = subprocess.Popen(
            [sys.executable, "-P", "-m", self._module],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            env={**_ENVIRONMENT, **os.environ, **native_environment(Home.resolve())},
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        for pipe in (self._process.stdin, self._process.stdout, self._log):
            if pipe is not None:
                pipe.close()

    def ask(
        self,
        request: Mapping[str, Any],
        *,
        progress: Progress = no_progress,
        check_cancelled: CheckCancelled = never_cancelled,
    ) -> dict[str, Any]:
        """Send ``request`` (JSON) and wait for its result.

        Args:
            request: What the child's work function takes.
            progress: Called with (item, done, total).
            check_cancelled: Called ten times a second; what it raises is passed on.

        Raises:
            QuantizeError: The child crashed; the message has its last words.
            LocalLLMError: What the child raised, with its class.
        """
        assert self._process.stdin is not None
        _send(self._process.stdin, request)
        answer = _listen(self._process, progress, check_cancelled)
        if answer is None:
            code = self._process.wait()
            ended = f"{self._what[:1].upper()}{self._what[1:]} ended unexpectedly: {how_it_ended(code)}."
            raise QuantizeError(ended, f"{_last_words(self._log)}{mend_hint(code)}")
        if "error" in answer:
            raise _error(answer["error"])
        result: dict[str, Any] = answer["result"]
        return result


def run_child(
    module: str,
    request: Mapping[str, Any],
    *,
    what: str,
    progress: Progress = no_progress,
    check_cancelled: CheckCancelled = never_cancelled,
) -> dict[str, Any]:
    """Start a :class:`Child`, ask it once, and end it; see there."""
    with Child(module, what) as child:
        return child.ask(request, progress=progress, check_cancelled=check_cancelled)


def _send(pipe: IO[bytes], request: Mapping[str, Any]) -> None:
    # From a thread: a request longer than the pipe's buffer must not block on a child that has died. The pipe stays
    # open: its end tells the child that we are gone.
    def write() -> None:
        try:
            pipe.write(json.dumps(request).encode() + b"\n")
            pipe.flush()
        except (BrokenPipeError, ValueError):
            return  # the child is gone: _listen sees it too, and says how it ended

    threading.Thread(target=write, daemon=True).start()


def _listen(
    process: subprocess.Popen[bytes], progress: Progress, check_cancelled: CheckCancelled
) -> dict[str, Any] | None:
    """The child's answer; None when it ended without one."""
    assert process.stdout is not None
    descriptor = process.stdout.fileno()
    pending = b""
    with selectors.DefaultSelector() as selector:
        selector.register(descriptor, selectors.EVENT_READ)
        while True:
            check_cancelled()
            if not selector.select(_POLL_SECONDS):
                continue
            data = os.read(descriptor, 1 << 16)
            if not data:
                return None
            *lines, pending = (pending + data).split(b"\n")
            for line in lines:
                message: dict[str, Any] = json.loads(line)
                if "progress" not in message:
                    return message
                stage, done, total = message["progress"]
                progress(stage, done, total)


def _error(described: Mapping[str, str]) -> LocalLLMError:
    kind = getattr(errors, described["kind"], None)
    if not (isinstance(kind, type) and issubclass(kind, LocalLLMError)):
        kind = QuantizeError
    return kind(described["message"], described["hint"])


def _last_words(log: IO[bytes]) -> str:
    size = log.seek(0, os.SEEK_END)
    log.seek(max(0, size - _LAST_WORDS))
    lines = [line for line in log.read().decode("utf-8", errors="replace").splitlines() if line.strip()]
    # A failed assert names itself in a line that others may follow.
    telling = [line for line in lines if "GGML_ASSERT" in line or "Error:" in line] or lines
    return f"Its last words: {one_line(telling[-1], 300)}" if telling else "It left no words."
