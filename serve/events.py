"""What a chat streams to whoever shows it, consumed with ``match``."""

from dataclasses import dataclass


@dataclass(frozen=True)
class TextDelta:
    """More text of the answer."""

    text: str


@dataclass(frozen=True)
class StreamDone:
    """The answer is complete.

    Attributes:
        reason: ``stop`` or ``length``.
        n_prompt, n_cached, n_completion: Token counts.
        prompt_seconds, decode_seconds: Times measured by the engine.
        n_ctx: Tokens that the context holds.
        model: The model that answered.
    """

    reason: str
    n_prompt: int
    n_cached: int
    n_completion: int
    prompt_seconds: float
    decode_seconds: float
    n_ctx: int
    model: str

    @property
    def tokens_per_second(self) -> float:
        """Decode speed; 0 when nothing was decoded."""
        return (
            (self.n_completion - 1) / self.decode_seconds if self.decode_seconds > 0 and self.n_completion > 1 else 0.0
        )


StreamEvent = TextDelta | StreamDone
