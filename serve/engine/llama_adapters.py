"""LoRA adapters in llama.cpp: checked against the model, loaded once, set on the context before each batch.

Everything that llama.cpp would answer with a failed assert, which ends its process, is refused here before it sees the
file. Changing the set costs llama.cpp a new plan of its computation, so :meth:`LoadedAdapters.use` changes nothing
where nothing changes.
"""

import ctypes
import os
from collections.abc import Collection, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import Any

import llama_cpp as lib

from localllm.adapter_gguf import check_fit, read_adapter_header
from localllm.errors import EngineBusyError, InvalidModelError, RequestError
from localllm.gguf_header import TensorInfo, read_gguf_header
from localllm.models.derive import split_siblings
from serve.engine.llama import LlamaContext, LlamaModel
from serve.engine.request import Adapter, AdapterSet

_MOST = 16  # in memory at once
_MOST_BYTES = 512 << 20  # of their files; one request's own may always be more


class AdapterChecker:
    """Says which adapters suit a model. Does not touch llama.cpp, so any thread may use it.

    Args:
        path: The model's GGUF file, the first one of a split model.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._right: set[str] = set()

    def check(self, choices: Sequence[tuple[str, float]]) -> AdapterSet:
        """Adapters, by path and scale, as jobs carry them; those of scale 0 change nothing and are left out.

        Raises:
            RequestError: One is given twice, cannot be read, or does not suit the model.
        """
        if len({path for path, _ in choices}) < len(choices):
            raise RequestError("An adapter is given twice.", "Name it once, with the scale it should have.", "adapters")
        checked = [self._checked(Path(path), scale) for path, scale in choices]
        return tuple(sorted((one for one in checked if one.scale), key=lambda one: one.path))

    def _checked(self, path: Path, scale: float) -> Adapter:
        try:
            status = path.stat()
            fingerprint = f"{status.st_dev}-{status.st_ino}-{status.st_size}-{status.st_mtime_ns}"
            if fingerprint not in self._right:
                check_fit(read_adapter_header(path), self._tensors, self._architecture)
                self._right.add(fingerprint)
        except OSError as error:
            raise RequestError(
                f"The adapter's file is gone: {error.strerror}.", "Install it anew.", "adapters"
            ) from None
        except InvalidModelError as error:
            raise RequestError(error.message, error.hint, "adapters") from error
        return Adapter(str(path), fingerprint, status.st_size, scale)

    @cached_property
    def _tensors(self) -> dict[str, TensorInfo]:
        names = split_siblings(self._path.name, (path.name for path in self._path.parent.iterdir()))
        headers = [read_gguf_header(self._path.parent / name) for name in names]
        return {tensor.name: tensor for header in headers for tensor in header.tensors}

    @cached_property
    def _architecture(self) -> str:
        return read_gguf_header(self._path).architecture


class LoadedAdapters:
    """The adapters in memory. Engine thread only: llama.cpp keeps them in the model, which it reads while it decodes.

    Args:
        model: Whose they are.
        context: Computes with them.
        most: How many may be in memory.
        most_bytes: How many bytes of them may, where one request does not need more.
    """

    def __init__(
        self, model: LlamaModel, context: LlamaContext, *, most: int = _MOST, most_bytes: int = _MOST_BYTES
    ) -> None:
        self._model = model
        self._context = context
        self._most = most
        self._most_bytes = most_bytes
        self._handles: dict[Adapter, Any] = {}  # of scale 1; the one used longest ago first
        self._set: AdapterSet = ()

    def load(self, adapters: AdapterSet, in_use: Collection[Adapter]) -> None:
        """As :meth:`serve.engine.backend.Backend.load_adapters`."""
        wanted = [replace(adapter, scale=1.0) for adapter in adapters]
        kept = {replace(adapter, scale=1.0) for adapter in in_use}
        self._make_room(kept.union(wanted), alone=not kept)
        for adapter in wanted:
            handle = self._handles.pop(adapter, None)
            if handle is None:
                handle = lib.llama_adapter_lora_init(self._model.handle, os.fsencode(adapter.path))
            if not handle:
                raise RequestError(
                    "llama.cpp cannot load this adapter.",
                    "It may have been made for another model, or be damaged: install it anew.",
                    "adapters",
                )
            self._handles[adapter] = handle

    def use(self, adapters: AdapterSet) -> None:
        """As :meth:`serve.engine.backend.Backend.use_adapters`."""
        if adapters == self._set:
            return
        n = len(adapters)
        handles = (lib.llama_adapter_lora_p_ctypes * n)(
            *(
                ctypes.cast(self._handles[replace(adapter, scale=1.0)], lib.llama_adapter_lora_p_ctypes)
                for adapter in adapters
            )
        )
        scales = (ctypes.c_float * n)(*(adapter.scale for adapter in adapters))
        lib.llama_set_adapters_lora(self._context.handle, handles if n else None, n, scales if n else None)
        self._set = adapters

    def _make_room(self, needed: Collection[Adapter], *, alone: bool) -> None:
        """Let go of what nobody needs, until ``needed`` have room.

        Raises:
            EngineBusyError: What other requests use takes too much.
        """
        while self._too_many(set(needed).union(self._handles)):
            oldest = next((adapter for adapter in self._handles if adapter not in needed), None)
            if oldest is None:
                if alone:
                    return
                raise EngineBusyError("Too many adapters are in use at once.", "Ask again in a moment.")
            if any(replace(adapter, scale=1.0) == oldest for adapter in self._set):
                self.use(())
            lib.llama_adapter_lora_free(self._handles.pop(oldest))

    def _too_many(self, adapters: Collection[Adapter]) -> bool:
        return len(adapters) > self._most or sum(adapter.n_bytes for adapter in adapters) > self._most_bytes
