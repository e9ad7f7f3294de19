"""Where a result is written before it gets its name, so that nothing half-made is ever seen or left."""

import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllm.files import disk_full_as_error


@contextmanager
def staging(target: Path) -> Iterator[Path]:
    """A directory beside ``target``, so that a rename is enough; gone afterwards, with what is still in it.

    The process that makes it is not the one that writes into it: a child that is killed cannot clean up.

    Raises:
        DiskFullError: There is no room for it.
    """
    with disk_full_as_error(target):
        directory = Path(tempfile.mkdtemp(dir=target.parent, prefix=f".{target.name}.", suffix=".tmp"))
    try:
        yield directory
    finally:
        shutil.rmtree(directory)
