"""Linux control groups: what a container or a service may use of the machine."""

from dataclasses import dataclass
from pathlib import Path

# A limit above this is no limit (version 1 writes 2**63 rounded down to a page).
_NO_LIMIT = 1 << 60


@dataclass(frozen=True)
class MemoryLimit:
    """The tightest limit on this process's memory.

    Attributes:
        limit: Bytes that it may use.
        free: Bytes of them that are not in use; file cache that can be dropped counts as free.
    """

    limit: int
    free: int


def memory_limit(root: Path = Path("/")) -> MemoryLimit | None:
    """The memory limit of this process's control group or of any group above it (versions 1 and 2).

    Args:
        root: Where ``proc`` and ``sys`` are; tests give a directory.

    Returns:
        None where there is no limit, or no control groups (macOS).
    """
    limits = [
        found
        for directory, names in _groups(root)
        if (found := _read_limit(directory, *names)) is not None and found.limit < _NO_LIMIT
    ]
    return min(limits, key=lambda found: found.free, default=None)


def _groups(root: Path) -> list[tuple[Path, tuple[str, str, str]]]:
    """Directories of the process's group and of those above, with the names of limit, usage and droppable cache."""
    try:
        lines = (root / "proc/self/cgroup").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups: list[tuple[Path, tuple[str, str, str]]] = []
    for line in lines:
        _, controllers, path = line.split(":", 2) if line.count(":") >= 2 else ("", "-", "")
        if controllers == "":
            mount, names = root / "sys/fs/cgroup", ("memory.max", "memory.current", "inactive_file")
        elif "memory" in controllers.split(","):
            mount = root / "sys/fs/cgroup/memory"
            names = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
        else:
            continue
        # In a container the path may be the host's and not be visible: the mount itself is then the group.
        parts = [part for part in path.split("/") if part not in ("", "..")]
        groups += [(mount.joinpath(*parts[:depth]), names) for depth in range(len(parts), -1, -1)]
    return groups


def _read_limit(directory: Path, limit_name: str, usage_name: str, cache_name: str) -> MemoryLimit | None:
    try:
        limit = int((directory / limit_name).read_text(encoding="ascii"))  # "max" is no limit: ValueError
        used = int((directory / usage_name).read_text(encoding="ascii"))
        stats = dict(line.split() for line in (directory / "memory.stat").read_text(encoding="ascii").splitlines())
        used -= int(stats.get(cache_name, 0))
    except (OSError, ValueError):
        return None
    return MemoryLimit(limit, max(0, limit - max(0, used)))
