"""Chats to token ids and a mask: exactly the assistant's tokens, its end of turn included, under any chat template.

Where a template marks its answers (``{% generation %}``), its marks are taken. Else each answer's place is proven: the
chat up to an answer, rendered with the generation prompt, must be the beginning of the chat with the answer, token for
token. Where a template writes earlier turns anew (leaving out what a model thought), that fails, and the chat becomes
one example for each of its answers, every one proven by itself.
"""

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np

from finetune.data.rows import Chat, Completion, Message, RowError, Text
from finetune.examples import Example

Tools = Sequence[dict[str, Any]]
TrainOn = Literal["assistant", "all"]


class ChatFormatter:
    """Formats rows for one model.

    Args:
        tokenizer: Of transformers.
        train_on: ``assistant``: only its turns are learnt; ``all``: every token.
    """

    def __init__(self, tokenizer: Any, train_on: TrainOn = "assistant") -> None:
        self._tokenizer = tokenizer
        self._train_on = train_on
        self._template = str(tokenizer.chat_template or "")

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizer

    def examples(self, content: Chat | Completion | Text, source: str) -> list[Example]:
        """The examples of a row; several where a template writes history anew.

        Raises:
            RowError: It cannot be formatted, with the reason.
        """
        match content:
            case Chat(messages, tools):
                return self._chat(messages, tools, source)
            case Completion(prompt, completion):
                if self._template:
                    turns = ({"role": "user", "content": prompt}, {"role": "assistant", "content": completion})
                    return self._chat(turns, (), source)
                return [self._completion(prompt, completion, source)]
            case Text(text):
                tokens = self._with_ends(self._encode(text))
                return [_example(tokens, np.ones(len(tokens), np.bool_), source)]

    def _chat(self, messages: Sequence[Message], tools: Tools, source: str) -> list[Example]:
        if not self._template:
            raise RowError("it is a chat, and this model has no chat template")
        whole = self._render(messages, tools)
        self._check_calls(messages, whole)
        if self._train_on == "all":
            return [_example(whole, np.ones(len(whole), np.bool_), source)]
        if "{% generation" in self._template or "{%- generation" in self._template:
            return [self._marked(messages, tools, source)]
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        mask = np.zeros(len(whole), np.bool_)
        if all(self._mark(mask, whole, messages, tools, number) for number in answers):
            return [_example(whole, mask, source)]
        examples = []
        for number in answers:
            part = messages[: number + 1]
            tokens = self._render(part, tools)
            mask = np.zeros(len(tokens), np.bool_)
            if not self._mark(mask, tokens, part, tools, number):
                raise RowError("this model's chat template gives the answer's place away to no proof")
            examples.append(_example(tokens, mask, source))
        return examples

    def _check_calls(self, messages: Sequence[Message], whole: list[int]) -> None:
        """Many templates leave tool calls out without a word; what is not written cannot be learnt."""
        names = {call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
        if names:
            text = self._tokenizer.decode(whole)
            if missing := sorted(name for name in names if name not in text):
                raise RowError(f"this model's chat template does not write tool calls ({missing[0]})")

    def _mark(
        self,
        mask: np.ndarray[tuple[int], np.dtype[np.bool_]],
        whole: list[int],
        messages: Sequence[Message],
        tools: Tools,
        number: int,
    ) -> bool:
        """Mark the answer ``messages[number]`` in ``whole``; False where its place cannot be proven."""
        before = self._render(messages[:number], tools, prompt=True)
        through = self._render(messages[: number + 1], tools)
        start = len(before)
        if through[:start] != before or len(through) <= start:
            return False
        end = start + self._answer_length(through[start:])
        # What follows the end of the turn (a line break) may join with what the next turn begins with.
        if whole[:end] != through[:end]:
            return False
        mask[start:end] = True
        return True

    def _answer_length(self, tokens: list[int]) -> int:
        """The answer's tokens up to its end of turn; without one all of them, but for white space at the end."""
        specials = set(self._tokenizer.all_special_ids)
        ends = [place for place, token in enumerate(tokens) if token in specials]
        if ends:
            return ends[-1] + 1
        return len(tokens)

    def _marked(self, messages: Sequence[Message], tools: Tools, source: str) -> Example:
        rendered = self._apply(messages, tools, return_assistant_tokens_mask=True, return_dict=True)
        return _example(list(rendered["input_ids"]), np.asarray(rendered["assistant_masks"], np.bool_), source)

    def _completion(self, prompt: str, completion: str, source: str) -> Example:
        # Apart, so that no token crosses the boundary: at the end of a prompt nobody knows what follows.
        asked = self._with_ends(self._encode(prompt), end=False)
        answered = self._with_ends(self._encode(completion), begin=False)
        mask = np.arange(len(asked) + len(answered)) >= len(asked)
        return _example([*asked, *answered], mask | (self._train_on == "all"), source)

    def _render(self, messages: Sequence[Message], tools: Tools, *, prompt: bool = False) -> list[int]:
        return list(self._apply(messages, tools, add_generation_prompt=prompt, return_dict=False))

    def _apply(self, messages: Sequence[Message], tools: Tools, **options: Any) -> Any:
        import jinja2  # deferred: 30 ms

        try:
            chat, given = list(messages), list(tools) or None
            return self._tokenizer.apply_chat_template(chat, tools=given, tokenize=True, **options)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RowError(f"this model's chat template refuses it: {reason.rstrip('.')}") from error

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _with_ends(self, tokens: list[int], *, begin: bool = True, end: bool = True) -> list[int]:
        bos, eos = self._tokenizer.bos_token_id, self._tokenizer.eos_token_id
        adds_bos = bool(self._tokenizer.encode("a")[:1] == [bos])
        first = [bos] if begin and adds_bos and tokens[:1] != [bos] else []
        last = [eos] if end and eos is not None and tokens[-1:] != [eos] else []
        return [*first, *tokens, *last]


def _example(tokens: list[int], supervised: np.ndarray[Any, np.dtype[np.bool_]], source: str) -> Example:
    if len(tokens) < 2:
        raise RowError("it has fewer than two tokens")
    return Example(np.asarray(tokens, np.int32), np.asarray(supervised, np.bool_), source)
