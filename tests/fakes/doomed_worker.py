"""A worker whose training is broken off at a chosen place.

``$DOOM`` says where:

- ``update 7``: killed (SIGKILL) as soon as update 7 is told;
- ``write step-000010``: killed while that checkpoint is written, the adapter already there;
- ``replace best``: killed while the old best adapter has stepped aside and the new one is not there yet;
- ``wait 6``: it waits after update 6 until it is cancelled;
- ``installed``: killed once the adapter or model is in the store, before the job is done;
- ``full 8``: from update 8 on the disk takes only files smaller than an optimizer's state.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path
from typing import Any

from localllm.jobs import worker
from localllm.mlx_setup import prepare_process

_ROOM = 30_000  # bytes


def _die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _doom(kind: str, place: str) -> None:
    prepare_process(0, cpu=True)  # as the job will: mlx binds its BLAS as it is imported
    from finetune import checkpoints, observer, publish

    told, sync, replace = observer.JobObserver.updated, checkpoints.sync_file, checkpoints.Checkpoints._replace

    def updated(self: Any, update: Any) -> None:
        told(self, update)
        if kind not in ("update", "wait", "full") or update.step != int(place):
            return
        match kind:
            case "update":
                _die()
            case "wait":
                while not self._context.cancelled:
                    time.sleep(0.01)
            case "full":
                signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
                resource.setrlimit(resource.RLIMIT_FSIZE, (_ROOM, _ROOM))

    def synced(path: Path) -> None:
        if kind == "write" and path.parent.name == f".{place}.tmp":
            _die()
        sync(path)

    def replaced(self: Any, temporary: Path, target: Path) -> None:
        if kind == "replace" and target.name == place and target.exists():
            target.rename(target.with_name(f".{target.name}.old"))
            _die()
        replace(self, temporary, target)

    observer.JobObserver.updated = updated  # type: ignore[method-assign]
    checkpoints.sync_file = synced
    if kind == "installed":
        publish.result_of = lambda *_: _die()
    checkpoints.Checkpoints._replace = replaced  # type: ignore[method-assign]


if __name__ == "__main__":
    _doom(*os.environ["DOOM"].split(" "))
    sys.exit(worker.main())
