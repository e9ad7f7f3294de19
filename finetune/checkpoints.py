"""Checkpoints from which a run goes on as if it had never stopped: weights, optimizer, random state, place in the data.

``checkpoints/step-000120/`` holds the adapter as mlx-lm reads it, ``optimizer.safetensors`` and ``progress.json``. It
is written under another name and renamed, so what is there is whole. The last two are kept: a power cut between two
renames finds one. The best adapter is kept apart in ``best/``.
"""

import json
import math
import shutil
from collections.abc import Iterable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import mlx.core as mx
import mlx.nn as nn
import mlx.optimizers as optim
from mlx.utils import tree_flatten, tree_unflatten

from finetune.lora import load_weights, save_adapter
from finetune.trainer import Progress
from localllm.errors import DiskFullError, InvalidModelError
from localllm.files import sync_directory, sync_file
from localllm.paths import DIR_MODE, FILE_MODE

_KEPT = 2
_OPTIMIZER, _PROGRESS = "optimizer.safetensors", "progress.json"
# What reading a damaged file leads to; mlx's errors are RuntimeErrors.
_DAMAGED = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


class Checkpoints:
    """The checkpoints of one run.

    Args:
        directory: Where they are; made when the first is saved.
        config: For ``adapter_config.json``.
    """

    def __init__(self, directory: Path, config: Mapping[str, Any]) -> None:
        self._directory = directory
        self._config = dict(config)

    @property
    def best(self) -> Path:
        """The directory of the best adapter; it exists once there is one."""
        return self._directory / "best"

    def save(self, model: nn.Module, optimizer: optim.Optimizer, progress: Progress, *, best: bool) -> Path:
        """Save everything; with ``best`` the adapter there too.

        Raises:
            DiskFullError: There is no room; the checkpoints before are untouched.
        """
        name = f"step-{progress.step:06d}"
        target = self._directory / name
        if best:
            self._write(self.best, model, None, progress)
        self._write(target, model, optimizer, progress)
        for old in self._saved()[:-_KEPT]:
            shutil.rmtree(old, ignore_errors=True)
        return target

    def restore(self, model: nn.Module, optimizer: optim.Optimizer) -> Progress | None:
        """Put the newest checkpoint into ``model``, ``optimizer`` and the random state; None when there is none.

        Raises:
            InvalidModelError: It belongs to another recipe, or is damaged.
        """
        saved = self._saved()
        if not saved:
            return None
        newest = saved[-1]
        try:
            load_weights(newest, model)
            state = cast("dict[str, mx.array]", mx.load(str(newest / _OPTIMIZER)))
            optimizer.state = tree_unflatten(list(state.items()))
            record = json.loads((newest / _PROGRESS).read_text(encoding="utf-8"))
            restore_random(record.pop("random"))
            record["best_loss"] = math.inf if record["best_loss"] is None else record["best_loss"]
            return Progress(**record)
        except _DAMAGED as error:
            raise InvalidModelError(
                f"The checkpoint {newest} is damaged.", "Remove it and resume: an older one, or the beginning, is next."
            ) from error

    def newest(self) -> Path:
        """The directory of the newest checkpoint; there must be one."""
        return self._saved()[-1]

    def _saved(self) -> list[Path]:
        return sorted(self._directory.glob("step-*"))

    def _write(self, target: Path, model: nn.Module, optimizer: optim.Optimizer | None, progress: Progress) -> None:
        self._directory.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
        temporary = self._directory / f".{target.name}.tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir(mode=DIR_MODE)
        try:
            save_adapter(temporary, model, self._config)
            if optimizer is not None:
                mx.save_safetensors(str(temporary / _OPTIMIZER), dict(tree_flatten(optimizer.state)))
            (temporary / _PROGRESS).write_text(json.dumps(_record(progress)), encoding="utf-8")
            for path in temporary.iterdir():
                path.chmod(FILE_MODE)
                sync_file(path)
        except (OSError, RuntimeError) as error:  # mlx reports a full disk as a RuntimeError
            room = shutil.disk_usage(self._directory).free
            shutil.rmtree(temporary, ignore_errors=True)
            raise DiskFullError(
                f"The checkpoint {target.name} could not be written ({room / 1e6:.0f} MB are free).",
                "Make room and resume: the checkpoints before it are whole.",
            ) from error
        self._replace(temporary, target)

    def _replace(self, temporary: Path, target: Path) -> None:
        """A directory cannot be renamed over one that holds something, so the old one steps aside first."""
        aside = self._directory / f".{target.name}.old"
        shutil.rmtree(aside, ignore_errors=True)
        if target.exists():
            target.rename(aside)
        temporary.rename(target)
        sync_directory(self._directory)
        shutil.rmtree(aside, ignore_errors=True)


def random_state() -> list[int]:
    """``mx.random``'s key, to be restored by :func:`restore_random`."""
    (key,) = cast("Iterable[mx.array]", mx.random.state)
    return cast("list[int]", key.tolist())


def restore_random(state: list[int]) -> None:
    """Go on drawing as from ``state``."""
    high, low = state
    mx.random.seed((high << 32) | low)  # a key is its seed's two halves


def _record(progress: Progress) -> dict[str, Any]:
    record = asdict(progress)
    record["best_loss"] = progress.best_loss if math.isfinite(progress.best_loss) else None  # JSON has no infinity
    return {**record, "random": random_state()}
