"""SentencePiece's own file (``tokenizer.model``): pieces with scores, and how it treats spaces."""

from dataclasses import dataclass, field
from pathlib import Path

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line

_BPE = 2  # TrainerSpec.ModelType


@dataclass(frozen=True)
class PieceModel:
    """A SentencePiece model of the BPE kind.

    Attributes:
        pieces: Texts by id.
        scores: Theirs: the later a merge was learned, the lower.
        types: Theirs, numbered as :class:`~quant.tokenizers.token_types.TokenType`.
        space_prefix: A space is put before the text.
    """

    pieces: list[str] = field(repr=False)
    scores: list[float] = field(repr=False)
    types: list[int] = field(repr=False)
    space_prefix: bool

    @classmethod
    def read(cls, path: Path) -> "PieceModel":
        """Read ``path``.

        Raises:
            InvalidModelError: It is damaged, or of another kind (unigram, word, character).
        """
        from google.protobuf.message import DecodeError  # 20 ms
        from sentencepiece import sentencepiece_model_pb2 as format_of

        model = format_of.ModelProto()
        try:
            model.ParseFromString(path.read_bytes())
        except (OSError, DecodeError) as error:
            raise InvalidModelError(
                f"{one_line(path.name, 80)} cannot be read: {error}.", "Pull the model again."
            ) from error
        if not model.pieces or model.trainer_spec.model_type != _BPE:
            raise InvalidModelError(
                f"{one_line(path.name, 80)} is not a BPE model of SentencePiece.",
                "Of SentencePiece's kinds, BPE alone can be converted.",
            )
        pieces = list(model.pieces)
        return cls(
            [piece.piece for piece in pieces],
            [piece.score for piece in pieces],
            [piece.type for piece in pieces],
            bool(model.normalizer_spec.add_dummy_prefix),
        )
