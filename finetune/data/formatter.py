"""Chats to token ids and a mask: exactly the assistant's tokens, its end of turn included, under any chat template.

Where a template marks its answers (``{% generation %}``), its marks are taken. Else each answer's place is proven: the
chat up to an answer, rendered with the generation prompt, must be the beginning of the chat with the answer, token for
token. Where that fails, the chat becomes one example for each of its answers, every one proven by itself: a template
may write earlier turns anew (leaving out what a model thought), and a tokenizer may join the prompt's last characters
with the answer's first, which never happens when the model answers: then the answer is encoded apart, as it will be.
"""

import re
from collections.abc import Sequence
from functools import cached_property
from typing import Any, Literal

import numpy as np

from finetune.data.rows import Chat, Completion, Message, RowError, Text
from finetune.examples import Example

Tools = Sequence[dict[str, Any]]
Mask = np.ndarray[tuple[int], np.dtype[np.bool_]]
TrainOn = Literal["assistant", "all"]

_GENERATION_MARK = re.compile(r"\{%-?\s*generation\s*-?%\}")
_PLAIN_CHAT: tuple[Message, ...] = ({"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello."})
_NOT_PROVEN = "under this model's chat template the place of its answers cannot be proven"


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
        self._has_marks = bool(_GENERATION_MARK.search(self._template))
        # Phi-3's <|end|> and others end a turn without being among the tokenizer's named special tokens.
        added = tokenizer.added_tokens_decoder.items()
        self._specials = {*tokenizer.all_special_ids, *(token for token, text in added if text.special)}

    @property
    def tokenizer(self) -> Any:
        """The tokenizer."""
        return self._tokenizer

    def prompt(self, messages: Sequence[Message]) -> list[int]:
        """What the answer to ``messages`` comes after; without a chat template the text of the last one.

        Raises:
            RowError: The template refuses it.
        """
        if self._template:
            return self._render(messages, (), prompt=True)
        return self._with_ends(self._encode(str(messages[-1]["content"])), end=False)

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
            raise RowError(
                "it is a chat, and this model has no chat template: "
                "use an instruct model, or rows of prompt and completion"
            )
        whole = self._render(messages, tools)
        self._check_calls(messages, whole)
        if self._train_on == "all":
            whole = self._with_ends(whole, begin=False, end=not self._ends_turn(whole))
            return [_example(whole, np.ones(len(whole), np.bool_), source)]
        if self._has_marks:
            return [self._marked(messages, tools, source)]
        mask = np.zeros(len(whole), np.bool_)
        answers = [number for number, message in enumerate(messages) if message["role"] == "assistant"]
        spans = [self._span(whole, messages, tools, number) for number in answers]
        if None not in spans and self._ends_turn(whole):
            for span in spans:
                mask[span] = True
            return [_example(whole, mask, source)]
        return [self._alone(messages[: number + 1], tools, source) for number in answers]

    def _check_calls(self, messages: Sequence[Message], whole: list[int]) -> None:
        """Many templates leave tool calls out without a word; what is not written cannot be learnt."""
        names = {call["function"]["name"] for message in messages for call in message.get("tool_calls") or ()}
        if names:
            text = self._decode(whole)
            if missing := sorted(name for name in names if name not in text):
                raise RowError(f"this model's chat template does not write tool calls ({missing[0]})")

    def _span(self, whole: list[int], messages: Sequence[Message], tools: Tools, number: int) -> slice | None:
        """Where the answer ``messages[number]`` is in ``whole``; None where that cannot be proven."""
        before = self._render(messages[:number], tools, prompt=True)
        is_last = number + 1 == len(messages)
        through = whole if is_last else self._render(messages[: number + 1], tools)
        start = len(before)
        if through[:start] != before or len(through) <= start:
            return None
        end = start + self._answer_length(through[start:])
        # What follows the end of the turn (a line break) may join with what the next turn begins with.
        return slice(start, end) if whole[:end] == through[:end] else None

    def _alone(self, messages: Sequence[Message], tools: Tools, source: str) -> Example:
        """An example of the last answer alone, encoded as it is when the model writes it: after the finished prompt.

        Raises:
            RowError: The prompt's text is not the beginning of the whole, or cannot be encoded without loss.
        """
        before = self._render(messages[:-1], tools, prompt=True)
        whole = self._render(messages, tools)
        if whole[: len(before)] != before:
            prompt = self._text(messages[:-1], tools, prompt=True)
            text = self._text(messages, tools)
            if not text.startswith(prompt):
                raise RowError(f"{_NOT_PROVEN} (it writes the chat anew)")
            whole = [*before, *self._encode(text[len(prompt) :])]
            if self._decode(whole) != self._decode(self._encode(text)):
                raise RowError(f"{_NOT_PROVEN} (its tokens join across the answer's beginning)")
        if len(whole) <= len(before):
            raise RowError("this model's chat template leaves the answer out")
        answer = whole[len(before) :]
        answer = self._with_ends(answer[: self._answer_length(answer)], begin=False, end=not self._ends_turn(answer))
        mask = np.arange(len(before) + len(answer)) >= len(before)
        return _example([*before, *answer], mask, source)

    def _ends_turn(self, tokens: list[int]) -> bool:
        """Whether the last turn is ended by a special token, with nothing but white space behind it."""
        length = self._answer_length(tokens)
        return bool(length) and tokens[length - 1] in self._specials

    def _answer_length(self, tokens: list[int]) -> int:
        """The answer's tokens up to its end of turn, or, where the template has none, up to white space at the end."""
        length = self._without_space(tokens, len(tokens))
        if not length or tokens[length - 1] not in self._specials:
            return length
        # Some templates end the whole chat with a second special token, and some answers with one of their own (a tool
        # call's end). The first that ends every turn ends the answer; where there is none, the first of all.
        lengths = [length]
        while (shorter := self._without_space(tokens, lengths[-1] - 1)) and tokens[shorter - 1] in self._specials:
            lengths.append(shorter)
        if len(lengths) == 1:
            return length
        return next((n for n in reversed(lengths) if tokens[n - 1] == self._turn_end), lengths[-1])

    @cached_property
    def _turn_end(self) -> int | None:
        """The special token that ends an answer of plain text; None where there is none, or no such chat."""
        try:
            tokens = self._render(_PLAIN_CHAT, ())
        except RowError:
            return None
        length = self._without_space(tokens, len(tokens))
        end = None
        while length and tokens[length - 1] in self._specials:
            end = tokens[length - 1]
            length = self._without_space(tokens, length - 1)
        return end

    def _without_space(self, tokens: list[int], length: int) -> int:
        while length and tokens[length - 1] not in self._specials and not self._decode([tokens[length - 1]]).strip():
            length -= 1
        return length

    def _marked(self, messages: Sequence[Message], tools: Tools, source: str) -> Example:
        rendered = self._apply(messages, tools, return_assistant_tokens_mask=True, return_dict=True)
        tokens = list(rendered["input_ids"])
        mask = np.asarray(rendered["assistant_masks"], np.bool_)
        if not mask.any():
            raise RowError("this model's chat template marks no answer in it")
        for end in np.flatnonzero(mask[:-1] & ~mask[1:]) + 1:
            # Marks that stop short of the end of turn would teach a model that never stops.
            is_end = tokens[end] == self._turn_end or not self._ends_turn(tokens[:end])
            mask[end] |= tokens[end] in self._specials and is_end
        return _example(tokens, mask, source)

    def _completion(self, prompt: str, completion: str, source: str) -> Example:
        # Apart, so that no token crosses the boundary: at the end of a prompt nobody knows what follows.
        asked = self.prompt([{"role": "user", "content": prompt}])
        answered = self._with_ends(self._encode(completion), begin=False)
        mask = np.arange(len(asked) + len(answered)) >= len(asked)
        return _example([*asked, *answered], mask | (self._train_on == "all"), source)

    def _render(self, messages: Sequence[Message], tools: Tools, *, prompt: bool = False) -> list[int]:
        return list(self._apply(messages, tools, add_generation_prompt=prompt, return_dict=False))

    def _text(self, messages: Sequence[Message], tools: Tools, *, prompt: bool = False) -> str:
        return str(self._apply(messages, tools, add_generation_prompt=prompt, tokenize=False))

    def _apply(self, messages: Sequence[Message], tools: Tools, *, tokenize: bool = True, **options: Any) -> Any:
        import jinja2  # deferred: 30 ms

        try:
            chat, given = list(messages), list(tools) or None
            return self._tokenizer.apply_chat_template(chat, tools=given, tokenize=tokenize, **options)
        except (jinja2.TemplateError, ValueError, TypeError, KeyError) as error:
            reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
            raise RowError(f"this model's chat template refuses it: {reason.rstrip('.')}") from error

    def _encode(self, text: str) -> list[int]:
        return list(self._tokenizer.encode(text, add_special_tokens=False))

    def _decode(self, tokens: list[int]) -> str:
        return str(self._tokenizer.decode(tokens, clean_up_tokenization_spaces=False))

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
