"""The privacy report: where a person's data lives, who can read it, what listens, and what leaves the machine."""

import ipaddress
import os
import shlex
import stat
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from localllm.checkup.finding import Finding
from localllm.memory import gigabytes
from localllm.paths import Home
from localllm.sanitize import one_line
from localllm.settings import Settings
from localllm.snapshots import snapshot_bytes

_OTHERS = 0o077
_OFFLINE = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")  # huggingface_hub obeys both
# Parts of paths that a synchronising service watches, and its name.
_SYNCED = {
    "mobile documents": "iCloud Drive",
    "dropbox": "Dropbox",
    "onedrive": "OneDrive",
    "google drive": "Google Drive",
    "cloudstorage": "a cloud drive",
    "nextcloud": "Nextcloud",
}


def check_files(home: Home) -> list[Finding]:
    """Where the data lives, and whether other users of this machine can read it."""
    status = home.root.stat()
    mode = stat.S_IMODE(status.st_mode)
    if status.st_uid != os.getuid():
        return [
            Finding("problem", f"{home.root} belongs to another user", "Set LOCALLLM_HOME to a directory of yours.")
        ]
    tighten = f"Run `chmod -R go= {shlex.quote(str(home.root))}`."
    entered = mode & _OTHERS
    if entered:
        findings = [Finding("problem", f"Other users may enter {home.root} (mode {mode:04o})", tighten)]
    else:
        findings = [Finding("ok", f"All data is in {home.root}, which only you may enter (mode {mode:04o})")]
    loose = list(_loose_modes(home.root))
    if loose:
        shown = one_line(str(loose[0].relative_to(home.root)), 80)
        text = f"Modes inside it that would let others in: {len(loose)}, such as that of {shown}"
        # Inside a directory that others may not enter, such a mode does harm only once the file is moved.
        findings.append(Finding("problem" if entered else "warn", text, tighten))
    if home.snapshots.is_dir():
        size = gigabytes(snapshot_bytes(home))
        text = (
            f"What models made of long prompts is kept in {home.snapshots} ({size}); deleting a conversation clears it"
        )
        findings.append(Finding("ok", text))
    synced = next((name for part in home.root.parts if (name := _SYNCED.get(part.lower()))), None)
    if synced:
        text = f"The home is inside {synced}: conversations leave this machine with it"
        findings.append(Finding("problem", text, "Set LOCALLLM_HOME to a directory that is not synchronised."))
    return findings


def check_network(environ: Mapping[str, str], settings: Settings | None) -> list[Finding]:
    """What may leave the machine, by settings and environment.

    Args:
        environ: The environment.
        settings: None when they cannot be read, which is reported elsewhere.
    """
    findings = [
        Finding(
            "ok",
            "No telemetry: only `localllm pull` uses the network, "
            "`localllm finetune` where you name a data set of the hub, "
            "and `localllm doctor --mend` where it builds llama.cpp",
        ),
        Finding("ok", "A hub that is asked learns this program's name and version, and nothing else of this machine"),
    ]
    if switch := next((name for name in _OFFLINE if _on(environ.get(name))), None):
        findings.append(Finding("ok", f"The hub is switched off ({switch}): only what is cached is used"))
    if endpoint := environ.get("HF_ENDPOINT"):
        findings.append(Finding("warn", f"`pull` asks {one_line(endpoint, 100)} (HF_ENDPOINT)", "Is this hub yours?"))
    if environ.get("HF_TOKEN"):
        findings.append(Finding("ok", "HF_TOKEN is set: `pull` shows your account to the hub"))
    if settings is not None and not is_loopback(settings.host):
        text = f"`localllm serve` will listen on {one_line(settings.host, 60)}, where other machines can reach it"
        findings.append(Finding("warn", text, "Set host to 127.0.0.1 unless you want that; it asks for a key."))
    return findings


def check_server(pid: int | None, listens: Callable[[int], tuple[str, ...] | None] | None = None) -> list[Finding]:
    """Whether a server runs, and what it listens on, as the system sees it.

    Args:
        pid: Process id of the home's running server; None when none runs.
        listens: Tells the addresses that a process and its children listen on; :func:`listening` by default.
    """
    if pid is None:
        return [Finding("ok", "No server is running: nothing listens")]
    addresses = (listens or listening)(pid)
    running = f"A server is running (process {pid})"
    if addresses is None:
        return [Finding("warn", f"{running}; the system does not tell what it listens on")]
    exposed = [address for address in addresses if not is_loopback(address.rpartition(":")[0])]
    if exposed:
        hint = "Other machines can reach it, with its key. Stop it, and serve on 127.0.0.1, unless you want that."
        return [Finding("warn", f"{running} and listens on {', '.join(exposed)}", hint)]
    if not addresses:
        return [Finding("ok", f"{running} and does not listen yet")]
    return [Finding("ok", f"{running} and listens only on {', '.join(addresses)}, for this machine alone")]


def listening(pid: int) -> tuple[str, ...] | None:
    """What the process ``pid`` and its children listen on, as ``127.0.0.1:11435``; None when the system refuses."""
    import psutil  # deferred: 15 ms

    try:
        process = psutil.Process(pid)
        return tuple(
            f"{connection.laddr.ip}:{connection.laddr.port}"
            for member in (process, *process.children(recursive=True))
            for connection in member.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        )
    except psutil.NoSuchProcess:
        return ()  # it ended since it was found
    except psutil.AccessDenied:
        return None


def is_loopback(host: str) -> bool:
    """Whether ``host`` is this machine's own address; a name other than ``localhost`` is not."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def _loose_modes(root: Path) -> Iterator[Path]:
    for directory, directories, files in os.walk(root):
        for name in (*directories, *files):
            path = Path(directory, name)
            try:
                status = path.lstat()
            except FileNotFoundError:
                continue  # gone since it was listed
            # A file with another hard link is a model that was linked from elsewhere: its mode is that file's too.
            linked = stat.S_ISREG(status.st_mode) and status.st_nlink > 1
            if not linked and not stat.S_ISLNK(status.st_mode) and status.st_mode & _OTHERS:
                yield path


def _on(value: str | None) -> bool:
    return (value or "").strip().lower() in {"1", "on", "yes", "true"}
