"""Directories of results that appear whole or not at all."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllm.errors import StoreError
from localllm.files import sync_directory, sync_file
from localllm.paths import DIR_MODE, FILE_MODE


@contextmanager
def new_directory(target: Path) -> Iterator[Path]:
    """A directory under another name that becomes ``target`` at the end of the block; an exception leaves nothing.

    Raises:
        StoreError: ``target`` holds something, or somebody else made it meanwhile.
    """
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise StoreError(f"{target.name} is there already.", "Choose another place, or remove it first.")
    work = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield work
        _finish(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _finish(work: Path, target: Path) -> None:
    """Make every byte durable, then rename."""
    for path in work.rglob("*"):
        path.chmod(DIR_MODE if path.is_dir() else FILE_MODE)
        if path.is_file():
            sync_file(path)
    work.chmod(DIR_MODE)
    try:
        work.rename(target)
    except OSError as error:
        raise StoreError(f"{target.name} appeared meanwhile.", "Another conversion may have written it.") from error
    sync_directory(target.parent)
