"""Where a result is written before it gets its name, so that nothing half-made is ever seen or left."""

import shutil
import tempfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from localllm.files import disk_full_as_error, sync_file

_SECONDS_BETWEEN = 0.2


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


@contextmanager
def synced_meanwhile(directory: Path) -> Iterator[None]:
    """Bring what another process writes into ``directory`` to the disk as it comes.

    Otherwise it all waits in memory for one sync at the end, while nothing else goes on.

    Raises:
        OSError: What a sync met. It is told once: a later sync of the same file would not meet it again.
    """
    ends = threading.Event()
    failures: list[OSError] = []

    def sync() -> None:
        while not ends.wait(_SECONDS_BETWEEN) and not failures:
            for path in directory.iterdir():
                try:
                    sync_file(path)
                except FileNotFoundError:
                    continue  # it was given another name
                except OSError as error:
                    failures.append(error)

    thread = threading.Thread(target=sync, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ends.set()
        thread.join()
    if failures:
        raise failures[0]
