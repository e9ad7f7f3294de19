"""Whether llama.cpp and the Hugging Face tokenizer give the same token ids: the proof behind an export or import."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

from localllm.errors import InvalidModelError
from localllm.native.llama_params import model_params
from localllm.sanitize import one_line
from quant.tokenizers.deviations import known_reason
from quant.tokenizers.sample import mixed_text
from quant.tokenizers.source import load_tokenizer, read_json

_MAX_SPECIAL = 40  # special tokens that are tried; Gemma has thousands that are unused


@dataclass(frozen=True)
class TokenizerCheck:
    """What a comparison found.

    Attributes:
        n_texts: Texts by kind.
        n_bytes: Of all texts, in UTF-8.
        different: Texts by kind on which the ids differ without a known reason.
        explained: Texts by reason, where the ids differ because of something that llama.cpp is known not to do.
        example: The first of the texts in ``different``; empty when there is none.
    """

    n_texts: Mapping[str, int]
    n_bytes: int
    different: Mapping[str, int]
    explained: Mapping[str, int]
    example: str = field(default="", repr=False)

    @property
    def passed(self) -> bool:
        """No text differs without a known reason."""
        return not self.different


class LlamaVocabulary:
    """The vocabulary of a GGUF file in llama.cpp, without its weights. A context manager.

    Args:
        path: The file.

    Raises:
        InvalidModelError: llama.cpp cannot load it.
    """

    def __init__(self, path: Path) -> None:
        import llama_cpp  # 0.2 s, and a native library

        self._library = llama_cpp
        params = model_params(llama_cpp, n_gpu_layers=0)
        params.vocab_only = True
        self._model = llama_cpp.llama_model_load_from_file(str(path).encode(), params)
        if not self._model:
            raise InvalidModelError(f"llama.cpp cannot load the vocabulary of {one_line(path.name, 80)}.")
        self._vocabulary = llama_cpp.llama_model_get_vocab(self._model)

    def __enter__(self) -> "LlamaVocabulary":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self._library.llama_model_free(self._model)

    def encode(self, text: str, *, add_special: bool = False) -> list[int]:
        """Token ids; special tokens written in the text count as such."""
        raw = text.encode()
        limit = len(raw) + 8  # never more than one a byte, and what is added around
        room = (self._library.llama_token * limit)()
        count = self._library.llama_tokenize(self._vocabulary, raw, len(raw), room, limit, add_special, True)
        assert 0 <= count <= limit
        return list(room[:count])


def check_tokenizer(gguf: Path, directory: Path, *, n_random: int = 400) -> TokenizerCheck:
    """Compare the ids that llama.cpp gives for ``gguf`` with those of ``directory``'s tokenizer.json.

    Args:
        gguf: A GGUF file; its weights are not read.
        directory: With tokenizer.json.
        n_random: Random texts of each of two kinds; see :func:`.sample.mixed_text`.

    Raises:
        InvalidModelError: One of the two cannot be loaded.
    """
    definition, tokenizer = read_json(directory / "tokenizer.json"), load_tokenizer(directory)
    tokenizer.no_truncation()
    tokenizer.no_padding()
    special = [row["content"] for row in definition.get("added_tokens") or () if row["special"]][:_MAX_SPECIAL]
    texts = mixed_text([token for token in special if token], n_random=n_random)
    different: dict[str, int] = {}
    explained: dict[str, int] = {}
    example = ""
    with LlamaVocabulary(gguf) as vocabulary:
        for kind, rows in texts.items():
            for text in rows:
                if all(
                    vocabulary.encode(text, add_special=add) == tokenizer.encode(text, add_special_tokens=add).ids
                    for add in (False, True)
                ):
                    continue
                if reason := known_reason(text, definition):
                    explained[reason] = explained.get(reason, 0) + 1
                else:
                    different[kind] = different.get(kind, 0) + 1
                    example = example or text
    n_bytes = sum(len(text.encode()) for rows in texts.values() for text in rows)
    return TokenizerCheck({kind: len(rows) for kind, rows in texts.items()}, n_bytes, different, explained, example)
