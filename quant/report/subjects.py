"""What a report measures, and the files of it: those in the store as they are, types made for it and thrown away."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from localllm.errors import InvalidModelError
from localllm.gguf_header import read_gguf_parts
from localllm.jobs.context import JobContext
from localllm.mlx_setup import prepare_process
from localllm.model_directory import read_safetensors_header
from localllm.models.manifest import Manifest, made_by
from localllm.models.store import ModelStore
from localllm.models.transfer import sha256_of
from quant.child import Progress as OnProgress
from quant.importance import ImportanceChoice, obtain_imatrix
from quant.llama_choices import source_parts
from quant.llama_quantize import quantize_gguf
from quant.llama_types import FILE_TYPES
from quant.mlx_types import MLX_TYPES
from quant.quantize_job import source_gguf
from quant.report.record import Kind

Telling = Callable[[str], OnProgress]


@dataclass(frozen=True)
class Subject:
    """What is measured: the source, another model of the store, or a type that is tried.

    Attributes:
        name, kind, type: As :class:`quant.report.record.Row` has them.
        model: In the store; None for a type.
    """

    name: str
    kind: Kind
    type: str
    model: Manifest | None = None

    @property
    def is_mlx(self) -> bool:
        """MLX runs it. The source always goes through llama.cpp, as what is made from it does."""
        if self.model is None:
            return self.type in MLX_TYPES
        return self.kind != "source" and self.model.format != "gguf"


@dataclass(frozen=True)
class Files:
    """A model that can be loaded.

    Attributes:
        path: A GGUF file (the first of a split one), or a directory.
        n_bytes: Of all files.
        bits: Per weight, over all parameters.
        notes: What was said when it was made.
    """

    path: Path
    n_bytes: int
    bits: float
    notes: tuple[str, ...] = ()


class Stock:
    """The files of all subjects. What several need is made when the first needs it.

    Args:
        context: The job.
        source: What the types are made from.
        choice: Of the importance matrix.
        work: A directory for what is thrown away.
        telling: Called with what is done; gives the ``progress`` of it.
    """

    def __init__(
        self, context: JobContext, source: Manifest, choice: ImportanceChoice, work: Path, telling: Telling
    ) -> None:
        self._context, self._source, self._choice, self._work, self._telling = context, source, choice, work, telling
        self._store = ModelStore(context.home)

    @cached_property
    def gguf(self) -> Path:
        """The source as llama.cpp runs it."""
        self._check_whole(self._source)
        check = self._context.check_cancelled
        return source_gguf(
            self._store, self._source, self._work, progress=self._telling("convert"), check_cancelled=check
        )

    @cached_property
    def imatrix(self) -> Path | None:
        """The importance matrix; None where none is wanted."""
        if not self._choice.is_used:
            return None
        return obtain_imatrix(
            self._context.home,
            self._choice,
            self._source,
            self.gguf,
            self._work,
            progress=self._telling("importance"),
            check_cancelled=self._context.check_cancelled,
        )

    def imatrix_for(self, name: str) -> Path | None:
        """The importance matrix where the type takes one."""
        uses = name in FILE_TYPES and FILE_TYPES[name].imatrix != "unused"
        return self.imatrix if uses else None

    @contextmanager
    def files(self, subject: Subject) -> Iterator[Files]:
        """The files of a subject; those of a type are gone afterwards.

        Raises:
            InvalidModelError: A model of the store is damaged.
            QuantizeError: llama.cpp refuses to make it.
            DiskFullError: There is no room.
        """
        if subject.kind == "source":
            yield self._described(self._source, self.gguf)
        elif subject.model is not None:
            self._check_whole(subject.model)
            file = self._store.file(subject.model)
            yield self._described(subject.model, file.parent if subject.is_mlx else file)
        else:
            target = self._work / "candidate"
            shutil.rmtree(target, ignore_errors=True)
            try:
                yield self._made_by_mlx(subject, target) if subject.is_mlx else self._made_by_llama(subject, target)
            finally:
                shutil.rmtree(target, ignore_errors=True)

    def _made_by_llama(self, subject: Subject, target: Path) -> Files:
        target.mkdir()
        made = quantize_gguf(
            self.gguf,
            target / f"{subject.type}.gguf",
            subject.type,
            imatrix=self.imatrix_for(subject.type),
            progress=self._telling("quantize"),
            check_cancelled=self._context.check_cancelled,
        )
        return Files(made.files[0], made.n_bytes, made.plan.bits, made.plan.warnings)

    def _made_by_mlx(self, subject: Subject, target: Path) -> Files:
        prepare_process(0, cpu=False)
        from quant.mlx_quantize import quantize_mlx  # deferred: mlx binds its BLAS as it is imported; mlx-lm takes 2 s

        notes: list[str] = []
        file = self._store.file(self._source)
        quantize_mlx(
            file if self._source.format == "gguf" else file.parent,
            target,
            subject.type,
            progress=self._telling("quantize"),
            check_cancelled=self._context.check_cancelled,
            notice=notes.append,
        )
        n_bytes = sum(path.stat().st_size for path in target.iterdir())
        return Files(target, n_bytes, self._bits(sorted(target.glob("*.safetensors"))), tuple(notes))

    def _described(self, model: Manifest, path: Path) -> Files:
        """A model in the store; the source may be loaded from elsewhere, but what it is says the store."""
        paths = self._store.paths(model)
        if model.format != "gguf":
            return Files(path, model.size, self._bits([file for file in paths if file.suffix == ".safetensors"]))
        header = read_gguf_parts(paths)
        return Files(path, model.size, 8 * sum(tensor.n_bytes for tensor in header.tensors) / header.n_parameters)

    def _bits(self, weights: list[Path]) -> float:
        """Of safetensors. MLX packs weights, and no file says how many: they are as many as the source has."""
        n_bytes = sum(tensor.n_bytes for path in weights for tensor in read_safetensors_header(path))
        return 8 * n_bytes / max(read_gguf_parts(source_parts(self.gguf)).n_parameters, 1)

    def _check_whole(self, model: Manifest) -> None:
        """What was measured is kept under the hash of the files: they must be those."""
        done = 0
        tell = self._telling("check")
        for file, path in zip(model.files, self._store.paths(model), strict=True):
            before = done

            def read(n: int, before: int = before) -> None:
                self._context.check_cancelled()
                tell("", before + n, model.size)

            if sha256_of(path, read) != file.sha256:
                raise InvalidModelError(
                    f"{model.model_name} is damaged: {path.name} is not what it was.", f"Get it again: {made_by(model)}"
                )
            done += file.size
