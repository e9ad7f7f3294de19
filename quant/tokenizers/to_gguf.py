"""From a Hugging Face or MLX directory to the tokenizer metadata of a GGUF file."""

from pathlib import Path

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.tokenizers import byte_level, scored, wordpiece
from quant.tokenizers.source import SourceTokenizer
from quant.tokenizers.templates import gguf_templates
from quant.tokenizers.token_types import TokenizerMetadata


def gguf_tokenizer(directory: Path) -> TokenizerMetadata:
    """Every ``tokenizer.*`` key for the model in ``directory``.

    Args:
        directory: With tokenizer.json, tokenizer.model or vocab.txt; beside them tokenizer_config.json,
            special_tokens_map.json, generation_config.json and chat templates where the model has them, and
            config.json, whose ``vocab_size`` is the number of rows to fill.

    Raises:
        InvalidModelError: There is no tokenizer, or it is damaged, or of a kind that is not known.
    """
    source = SourceTokenizer.read(directory)
    try:
        return _convert(source) | gguf_templates(source)
    except (KeyError, IndexError, TypeError, ValueError, AttributeError) as error:
        raise InvalidModelError(
            f"The tokenizer in {one_line(directory.name, 80)} is of no known form ({type(error).__name__}: {error}).",
            "Pull the model again.",
        ) from error


def _convert(source: SourceTokenizer) -> TokenizerMetadata:
    model = source.definition.get("model") or {}
    match source.model_type:
        case "BPE":
            return scored.to_gguf(source) if model.get("byte_fallback") else byte_level.to_gguf(source)
        case "WordPiece":
            return wordpiece.to_gguf(source)
        case "" if (source.directory / "tokenizer.model").is_file():
            return scored.to_gguf(source)
        case "" if (source.directory / "vocab.txt").is_file():
            return wordpiece.to_gguf(source)
        case "":
            raise InvalidModelError(
                f"{one_line(source.directory.name, 80)} has no tokenizer.",
                "It needs a tokenizer.json, tokenizer.model or vocab.txt.",
            )
        case other:
            raise InvalidModelError(
                f"Tokenizers of the kind {one_line(other, 40)!r} cannot be converted.",
                "BPE (byte-level and SentencePiece) and WordPiece can.",
            )
