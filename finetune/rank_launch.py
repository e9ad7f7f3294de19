"""Training with several processes: this one starts them with MLX's own ``mlx.launch``, and waits for what they say.

Rank 0 is on this machine: it tells the job's events and saves its checkpoints. Where one dies, ``mlx.launch`` ends the
others; the job then goes on from its last checkpoint when it is resumed.
"""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from localllm import errors
from localllm.errors import JobCancelledError, JobError, LocalLLMError, UsageError
from localllm.jobs.context import JobContext
from localllm.jobs.job import Job

_WORKER = "finetune.rank_worker"
_HERE = "127.0.0.1"
_POLL_SECONDS = 0.1
_ENDED = re.compile(r"Node with rank (\d+) (?:exited with code (-?\d+)|was killed)")
_MOST = 64


@dataclass(frozen=True)
class Hosts:
    """Where the ranks run.

    Attributes:
        names: Of each rank, as ``ssh`` knows it; 127.0.0.1 is this machine.
        file: What ``mlx.launch`` reads; empty where all are on this machine.
    """

    names: tuple[str, ...]
    file: str = ""

    @property
    def sharing(self) -> list[int]:
        """How many ranks share each rank's machine."""
        count = Counter(self.names)
        return [count[name] for name in self.names]


def find_hosts(ranks: int, file: str) -> Hosts:
    """The machines for so many ranks, or those of a host file.

    Raises:
        UsageError: The file is none, or the first rank is not on this machine.
    """
    if not file:
        if not 1 <= ranks <= _MOST:
            raise UsageError(f"There cannot be {ranks} ranks.", f"Between 1 and {_MOST}; 1 is the usual training.")
        return Hosts((_HERE,) * ranks)
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
        listed = content["hosts"] if isinstance(content, dict) else content
        names = tuple(str(host["ssh"]) for host in listed)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{file} is no host file of mlx.launch.", 'It is JSON: [{"ssh": "127.0.0.1", "ips": ["127.0.0.1"]}, …].'
        ) from error
    if names[:1] != (_HERE,):
        raise UsageError(f"The first host in {file} must be this machine.", f'Write {_HERE} for its "ssh".')
    return Hosts(names, file)


def train_together(context: JobContext, hosts: Hosts, commits: Mapping[str, str]) -> dict[str, Any]:
    """Start the ranks, and return rank 0's result.

    Args:
        context: The job.
        hosts: Where they run.
        commits: Of the data sets of the hub that the recipe names.

    Raises:
        JobCancelledError: It was cancelled; what was done is saved.
        JobError: A rank died.
        LocalLLMError: What a rank raised, with its class.
    """
    job = Job(context.directory)
    request = {
        "directory": str(context.directory),
        "recipe": context.arguments["recipe"],
        "commits": dict(commits),
        "resuming": context.resuming,
        "sharing": hosts.sharing,
    }
    n = len(hosts.names)
    where = ["--hostfile", hosts.file] if hosts.file else ["--repeat-hosts", str(n), "--backend", "ring"]
    if set(hosts.names) == {_HERE}:  # two trainings on one machine must not meet
        where += ["--starting-port", str(_free_ports(n))]
    launcher = [sys.executable, "-P", str(Path(sys.executable).with_name("mlx.launch")), *where]
    words = [*launcher, "--", sys.executable, "-P", "-m", _WORKER, json.dumps(request)]
    # mlx.launch leaves small files behind, on this machine at least in a place of their own.
    with tempfile.TemporaryDirectory(prefix="localllm-") as work:
        # Its input stays open and empty: at the end of a file it would ask for more as fast as it can.
        process = subprocess.Popen(
            words,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=os.environ | {"TMPDIR": work},
        )
        heard = _Heard(process)
        while True:
            try:
                process.wait(_POLL_SECONDS)
                break
            except subprocess.TimeoutExpired:
                if context.cancelled and not job.cancel_path.exists():
                    job.cancel_path.touch()  # a signal reached this process alone; rank 0 looks for the file
        heard.finish()
    return heard.outcome(job.id, cancelled=context.cancelled)


class _Heard:
    """What the ranks have said: an answer is a line of JSON on standard output, all else goes to the job's log."""

    def __init__(self, process: subprocess.Popen[bytes]) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._answers: dict[int, dict[str, Any]] = {}
        self._ends: list[tuple[int, int]] = []  # rank, and code or -signal
        self._threads = [
            threading.Thread(target=listen, args=(pipe,), daemon=True)
            for listen, pipe in ((self._hear_answers, process.stdout), (self._hear_words, process.stderr))
        ]
        for thread in self._threads:
            thread.start()

    def finish(self) -> None:
        """Hear the last words."""
        for thread in self._threads:
            thread.join()

    def outcome(self, job: str, *, cancelled: bool) -> dict[str, Any]:
        """Rank 0's result; see :func:`train_together`."""
        lead = self._answers.get(0, {})
        if "result" in lead:
            result: dict[str, Any] = lead["result"]
            return result
        for rank, answer in sorted(self._answers.items()):
            if "error" in answer:
                raise _error(rank, answer["error"])
        if cancelled or "cancelled" in lead:
            raise JobCancelledError
        raise JobError(
            f"{_who_died(self._ends)}, and the others were ended.",
            f"`localllm jobs log {job}` has its last words; `localllm jobs resume {job}` goes on from the checkpoint.",
        )

    def _hear_answers(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            try:
                answer = json.loads(line)
                self._answers[int(answer["rank"])] = answer
            except (ValueError, KeyError, TypeError):
                sys.stderr.write(line.decode("utf-8", "replace"))

    def _hear_words(self, pipe: IO[bytes]) -> None:
        for line in pipe:
            text = line.decode("utf-8", "replace")
            sys.stderr.write(text)
            sys.stderr.flush()
            if found := _ENDED.search(text):
                self._ends.append((int(found[1]), int(found[2] or -signal.SIGTERM)))


def _who_died(ends: Sequence[tuple[int, int]]) -> str:
    """One that was killed drew those into error that talked with it, and ``mlx.launch`` has terminated the rest."""

    def place(end: tuple[int, int]) -> int:
        code = end[1]
        return 2 if code == -signal.SIGTERM else 1 if code >= 0 else 0

    if not ends:
        return "A rank died without a word"
    rank, code = min(ends, key=place)
    return f"Rank {rank} died ({f'signal {-code}' if code < 0 else f'code {code}'})"


def _error(rank: int, described: dict[str, str]) -> LocalLLMError:
    kind = getattr(errors, described["kind"], LocalLLMError)
    message = described["message"] if rank == 0 else f"Rank {rank}: {described['message']}"
    found: LocalLLMError = kind(message, described["hint"])
    return found


def _free_ports(n: int) -> int:
    """The first of ``n`` neighbouring ports of this machine that nothing listens on."""
    while True:
        sockets: list[socket.socket] = []
        try:
            first = 0
            for number in range(n):
                one = socket.socket()
                sockets.append(one)
                one.bind((_HERE, first + number if first else 0))
                first = first or one.getsockname()[1]
        except (OSError, OverflowError):
            continue  # one of them is taken, or beyond the last
        else:
            return first
        finally:
            for one in sockets:
                one.close()
