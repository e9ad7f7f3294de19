"""The child's side of :mod:`quant.child`: read the requests, do the work, answer in JSON lines."""

import json
import os
import queue
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

from localllm.errors import LocalLLMError
from localllm.private_process import keep_private
from quant.child import Progress

_SECONDS_BETWEEN = 0.05  # progress is shown at most this often


def answer(work: Callable[[dict[str, Any], Progress], dict[str, Any]]) -> None:
    """Do ``work(request, progress)`` for each request of the parent, until it goes.

    A LocalLLMError is passed to the parent with its class; any other exception is a bug, and ends this process with a
    traceback, whose last line becomes the parent's message.
    """
    keep_private()
    answers = os.fdopen(os.dup(1), "w", buffering=1, encoding="utf-8")
    os.dup2(2, 1)  # native code prints: nothing of it may get between the answers
    requests: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    threading.Thread(target=_receive, args=(requests,), daemon=True).start()
    shown = [0.0]

    def progress(stage: str, done: int, total: int | None) -> None:
        now = time.monotonic()
        if done == total or now - shown[0] >= _SECONDS_BETWEEN:
            shown[0] = now
            answers.write(json.dumps({"progress": [stage, done, total]}) + "\n")

    while True:
        request: dict[str, Any] = json.loads(requests.get())
        try:
            message: dict[str, Any] = {"result": work(request, progress)}
        except LocalLLMError as error:
            message = {"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}}
        answers.write(json.dumps(message) + "\n")


def _receive(requests: "queue.SimpleQueue[bytes]") -> None:
    # In a thread, so that this process ends with its parent also while native code runs.
    for line in sys.stdin.buffer:
        requests.put(line)
    os._exit(1)
