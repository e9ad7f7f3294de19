"""Greedy answers of the model in training, for samples."""

from collections.abc import Sequence
from typing import Any

import mlx.core as mx
import mlx.nn as nn

from finetune.data.formatter import ChatFormatter
from finetune.observer import Chat, Speak


def speaker(model: nn.Module, formatter: ChatFormatter, end_tokens: Sequence[int]) -> Speak:
    """A function that answers chats with ``model`` as it is at the moment.

    Args:
        model: Of mlx-lm, with its adapters.
        formatter: Of the model.
        end_tokens: Ids that end an answer.
    """
    from mlx_lm.models.cache import make_prompt_cache  # deferred: 2 s

    ends = set(end_tokens)

    def speak(chat: Chat, longest: int) -> str:
        cache = make_prompt_cache(model)
        tokens = mx.array([formatter.prompt(chat)])
        answer: list[int] = []
        while len(answer) < longest:
            token = int(model(tokens, cache=cache)[0, -1].argmax().item())
            if token in ends:
                break
            answer.append(token)
            tokens = mx.array([[token]])
        return str(formatter.tokenizer.decode(answer, skip_special_tokens=True)).strip()

    return speak


def end_tokens(config: dict[str, Any], tokenizer: Any) -> list[int]:
    """What ends an answer: the tokenizer's end of turn, and what config.json names."""
    named = config.get("eos_token_id")
    ids = named if isinstance(named, list) else [named]
    return sorted({token for token in [*ids, tokenizer.eos_token_id] if isinstance(token, int)})
