"""Loads the weights of a model directory (config.json, safetensors) with mlx-lm, and a LoRA adapter on them."""

import json
from pathlib import Path
from typing import Any

from localllm.errors import EngineLoadError

_USUAL_CONTEXT = 8192
# What mlx-lm raises for a directory that is not what it expects: wrong names, shapes, types, missing files.
_LOAD_ERRORS = (OSError, ValueError, KeyError, TypeError, AttributeError, RuntimeError)


class Weights:
    """A model in MLX, and what its ``config.json`` says.

    Args:
        directory: The model's directory.
        adapter: A directory that mlx-lm's trainer wrote (``adapter_config.json``, ``adapters.safetensors``), or None.

    Attributes:
        model: The module; maps token ids of shape (batch, length) and caches to logits (batch, length, n_vocab).
        n_vocab: Width of its logits; may be more than the tokenizer knows.
        kv_bytes: Bytes that one token takes in the KV cache.

    Raises:
        EngineLoadError: The directory is damaged, of an unknown architecture, or wants to run code of its own.
    """

    def __init__(self, directory: Path, adapter: Path | None = None) -> None:
        import mlx.core as mx  # deferred, like mlx-lm (2 s): prepare_process comes first

        self.config = _read_config(directory)
        self.model = _load(directory)
        if adapter is not None:
            self.model = _add_adapter(self.model, adapter)
        self.model.eval()  # without the adapter's dropout
        if mx.default_device() == mx.cpu:
            # 16-bit products do not use BLAS: 2-5 GFLOP/s, where float32 has 100 (docs/LOG.md).
            self.model.set_dtype(mx.float32)
        self.n_vocab, self.kv_bytes = _try_out(self.model)

    @property
    def architecture(self) -> str:
        """``model_type`` in config.json."""
        return str(self.config["model_type"])

    @property
    def n_ctx_train(self) -> int:
        """Context length in training, in tokens; a usual one when config.json does not say."""
        return self._number("max_position_embeddings") or _USUAL_CONTEXT

    @property
    def n_embd(self) -> int:
        """Width of the hidden states; 0 when config.json does not say."""
        return self._number("hidden_size")

    @property
    def end_tokens(self) -> list[int]:
        """Token ids that end a generation: ``eos_token_id`` of generation_config.json, else of config.json."""
        match self.config.get("eos_token_id"):
            case int() as token:
                return [token]
            case list() as tokens:
                return [token for token in tokens if isinstance(token, int)]
        return []

    def _number(self, key: str) -> int:
        inner = self.config.get("text_config")
        value = self.config.get(key) or (inner.get(key) if isinstance(inner, dict) else 0)
        return value if isinstance(value, int) and value > 0 else 0


def _read_config(directory: Path) -> dict[str, Any]:
    """config.json, with the ``eos_token_id`` of generation_config.json, which is the one made for answering."""
    config = _read_json(directory / "config.json")
    if not isinstance(config.get("model_type"), str):
        raise EngineLoadError("The model's config.json names no model_type.", "Pull the model again.")
    if config.get("model_file") is not None:
        raise EngineLoadError(
            "This model comes with a program of its own, which is never run.",
            "Use a model of an architecture that mlx-lm knows, or a GGUF file.",
        )
    if (directory / "generation_config.json").is_file():
        end = _read_json(directory / "generation_config.json").get("eos_token_id")
        config["eos_token_id"] = config.get("eos_token_id") if end is None else end
    return config


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise EngineLoadError(f"The model's {path.name} cannot be read.", "Pull the model again.") from error
    if not isinstance(content, dict):
        raise EngineLoadError(f"The model's {path.name} holds no settings.", "Pull the model again.")
    return content


def _load(directory: Path) -> Any:
    from mlx_lm.utils import load_model

    try:
        # Lazy: the weights reach the memory once, in the type they are computed in.
        model, _ = load_model(directory, lazy=True, trust_remote_code=False)
    except _LOAD_ERRORS as error:
        raise EngineLoadError(
            f"mlx-lm cannot load this model: {_told(error)}",
            "Its architecture may be too new for the installed mlx-lm, or a file is damaged: pull the model again.",
        ) from error
    return model


def _add_adapter(model: Any, adapter: Path) -> Any:
    from mlx_lm.utils import load_adapters

    try:
        return load_adapters(model, str(adapter))
    except _LOAD_ERRORS as error:
        raise EngineLoadError(
            f"The adapter {adapter.name} cannot be loaded: {_told(error)}",
            "Use it with the model that it was trained on.",
        ) from error


def _try_out(model: Any) -> tuple[int, int]:
    """Read the weights into memory and run one token: the width of the logits, and the cache's bytes a token."""
    import mlx.core as mx
    from mlx_lm.models.cache import make_prompt_cache

    try:
        mx.eval(model.parameters())
        cache = make_prompt_cache(model)
        logits = model(mx.array([[0]]), cache=cache)
        mx.eval(logits, [layer.state for layer in cache])
    except _LOAD_ERRORS as error:
        raise EngineLoadError(
            f"mlx-lm cannot run this model: {_told(error)}",
            "There may be too little memory, or its files do not fit together.",
        ) from error
    if not all(hasattr(layer, "merge") for layer in cache):
        raise EngineLoadError(
            "mlx-lm cannot answer several requests at once with this model's kind of cache.",
            "Use a GGUF file of the model.",
        )
    # Caches grow by so many tokens at a time, so this is what one token has allocated.
    step = max((getattr(layer, "step", 1) for layer in cache), default=1)
    return int(logits.shape[-1]), max(1, sum(layer.nbytes for layer in cache) // step)


def _told(error: BaseException) -> str:
    """The first line of what a library says about a file, without the paths of this machine's libraries."""
    text = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
    if isinstance(error, KeyError):
        return f"{text} is missing."
    return text if text.endswith(".") else f"{text}."
