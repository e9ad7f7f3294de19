"""``localllm serve`` as a person starts it, in a process of its own."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager

from localllm.paths import Home
from serve.discovery import ServerRecord, running_server


@contextmanager
def serving(home: Home, *arguments: str) -> Iterator[ServerRecord]:
    """The running server's record; it is stopped in order at the end, and must end well."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app", "--home", str(home.root), "serve", "--port", "0", *arguments],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        deadline = time.monotonic() + 120
        while (record := running_server(home)) is None:
            assert process.poll() is None, f"the server ended: {process.stderr.read()}"
            assert time.monotonic() < deadline, "the server did not start"
            time.sleep(0.05)
        yield record
    finally:
        process.send_signal(signal.SIGTERM)
        _, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
