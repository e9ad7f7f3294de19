"""The privacy report: where a person's data lives, who can read it, what listens, and what leaves the machine."""

import ipaddress
import json
import os
import stat
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from localllm.checkup.finding import Finding
from localllm.paths import Home
from localllm.sanitize import one_line
from localllm.settings import Settings

_OTHERS = 0o077
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
    tighten = f"Run `chmod -R go= '{home.root}'`."
    entered = mode & _OTHERS
    if entered:
        findings = [Finding("problem", f"Other users may enter {home.root} (mode {mode:04o})", tighten)]
    else:
        findings = [Finding("ok", f"All data is in {home.root}, which only you may enter (mode {mode:04o})")]
    loose = list(_loose_modes(home.root))
    if loose:
        shown = one_line(str(loose[0].relative_to(home.root)), 80)
        text = f"{len(loose)} files or directories in it have modes that let others in, such as {shown}"
        # Inside a directory that others may not enter, such a mode does harm only once the file is moved.
        findings.append(Finding("problem" if entered else "warn", text, tighten))
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
    findings = [Finding("ok", "No telemetry: only `localllm pull` uses the network, and only when you run it")]
    if _on(environ.get("HF_HUB_OFFLINE")):
        findings.append(Finding("ok", "The hub is switched off (HF_HUB_OFFLINE): `pull` uses only what is cached"))
    if endpoint := environ.get("HF_ENDPOINT"):
        findings.append(Finding("warn", f"`pull` asks {one_line(endpoint, 100)} (HF_ENDPOINT)", "Is this hub yours?"))
    if environ.get("HF_TOKEN"):
        findings.append(Finding("ok", "HF_TOKEN is set: `pull` shows your account to the hub"))
    if _on(environ.get("HF_HUB_DISABLE_TELEMETRY")) or _on(environ.get("DO_NOT_TRACK")):
        findings.append(Finding("ok", "The hub's own usage data is off"))
    else:
        text = "During `pull`, the hub's library tells the hub which Python and library versions it runs"
        findings.append(Finding("warn", text, "Set HF_HUB_DISABLE_TELEMETRY=1 to stop that."))
    if settings is not None and not is_loopback(settings.host):
        text = f"`localllm serve` will listen on {one_line(settings.host, 60)}, where other machines can reach it"
        findings.append(Finding("warn", text, "Set host to 127.0.0.1 unless you want that; it asks for a key."))
    return findings


@dataclass(frozen=True)
class RunningServer:
    """A server that answers to this home's ``server.json``.

    Attributes:
        pid: Its process id.
        listens: Addresses that it and its children listen on, as ``127.0.0.1:11435``; None when the system refuses to
            tell.
    """

    pid: int
    listens: tuple[str, ...] | None


def check_server(home: Home) -> list[Finding]:
    """Whether a server runs, and what it listens on, as the system sees it."""
    try:
        record = json.loads(home.server_file.read_text(encoding="utf-8"))
        pid = int(record["pid"])
    except FileNotFoundError:
        return [Finding("ok", "No server is running: nothing listens")]
    except (OSError, ValueError, KeyError, TypeError):
        hint = "Remove it; the next start writes a new one."
        return [Finding("problem", f"{home.server_file} cannot be read", hint)]
    server = find_server(pid)
    if server is None:
        return [Finding("ok", "No server is running (the last one did not say goodbye): nothing listens")]
    return judge_server(server)


def find_server(pid: int) -> RunningServer | None:
    """The Python process ``pid`` of this user and what it listens on; None when there is no such process."""
    import psutil  # deferred: 15 ms

    try:
        process = psutil.Process(pid)
        if not any("serve" in part for part in process.cmdline()):
            return None  # the number was given to another program since
        family = [process, *process.children(recursive=True)]
        listens = tuple(
            f"{connection.laddr.ip}:{connection.laddr.port}"
            for member in family
            for connection in member.net_connections(kind="inet")
            if connection.status == psutil.CONN_LISTEN
        )
    except psutil.NoSuchProcess:
        return None
    except psutil.AccessDenied:
        return RunningServer(pid, None)
    return RunningServer(pid, listens)


def judge_server(server: RunningServer) -> list[Finding]:
    """What the addresses of a running server mean."""
    running = f"A server is running (process {server.pid})"
    if server.listens is None:
        return [Finding("warn", f"{running}; the system does not tell what it listens on")]
    exposed = [address for address in server.listens if not is_loopback(address.rpartition(":")[0])]
    if exposed:
        hint = "Other machines can reach it, with its key. Stop it, and serve on 127.0.0.1, unless you want that."
        return [Finding("warn", f"{running} and listens on {', '.join(exposed)}", hint)]
    if not server.listens:
        return [Finding("ok", f"{running}; it does not listen yet")]
    return [
        Finding("ok", f"{running} and listens only on {', '.join(server.listens)}, reachable from this machine alone")
    ]


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
                mode = path.lstat().st_mode
            except FileNotFoundError:
                continue  # gone since it was listed
            if not stat.S_ISLNK(mode) and mode & _OTHERS:
                yield path


def _on(value: str | None) -> bool:
    return (value or "").strip().lower() in {"1", "on", "yes", "true"}
