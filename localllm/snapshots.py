"""Where engines keep the KV of long prefixes on the disk, when asked to: ``snapshots/<sha256 of the model>/``.

A snapshot is a cache. It may hold the text of conversations, as token ids and as what the model made of them, so it is
as private as they are, and it goes when they go.
"""

from pathlib import Path

from localllm.errors import StoreError
from localllm.paths import DIR_MODE, FILE_MODE, Home

SUFFIX = ".kv"
# Engines keep nothing that is older than this file: text that they still hold in memory may have been deleted since.
CLEARED = "cleared"


def snapshot_directory(home: Home, sha256: str) -> Path:
    """The directory of the model whose first file has this digest."""
    return home.snapshots / sha256


def clear_snapshots(home: Home) -> None:
    """Remove all snapshots, because a text is deleted that they may hold; running engines start afresh too.

    Raises:
        StoreError: One could not be removed.
    """
    if not home.snapshots.is_dir():
        return
    try:
        # First, so that no engine writes an old text after its file was removed.
        (home.snapshots / CLEARED).touch(mode=FILE_MODE)
        for path in home.snapshots.glob("*/*"):
            path.unlink(missing_ok=True)
    except OSError as error:
        raise StoreError(
            f"Snapshots that may hold what was deleted could not be removed: {error.strerror}.",
            f"Delete the directory {home.snapshots}.",
        ) from error


def remove_model_snapshots(home: Home, sha256: str) -> int:
    """Remove the snapshots of a model that is removed itself; return the bytes freed.

    Raises:
        StoreError: They could not be removed.
    """
    directory = snapshot_directory(home, sha256)
    if not directory.is_dir():
        return 0
    freed = 0
    try:
        for path in directory.iterdir():
            freed += path.stat().st_size
            path.unlink()
        directory.rmdir()
    except OSError as error:
        raise StoreError(
            f"The model's snapshots could not be removed: {error.strerror}.", f"Delete the directory {directory}."
        ) from error
    return freed


def snapshot_bytes(home: Home) -> int:
    """What all snapshots take on the disk."""
    return sum(path.stat().st_size for path in home.snapshots.glob(f"*/*{SUFFIX}"))


def ensure_directory(directory: Path) -> None:
    """Make a model's directory, and the one around it, for the person alone.

    Raises:
        OSError: It cannot be made.
    """
    for one in (directory.parent, directory):
        one.mkdir(mode=DIR_MODE, exist_ok=True)
