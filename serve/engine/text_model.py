"""From requests to token ids, the same for every engine."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from localllm.errors import RequestError
from serve.engine.constraint_types import TokenMatcher
from serve.engine.prompt import mark_message, mark_specials, split_marked
from serve.engine.templates import ChatTemplate
from serve.engine.types import GenerateRequest

if TYPE_CHECKING:
    from serve.engine.constraints import GrammarVocabulary


class Vocabulary(Protocol):
    """A tokenizer."""

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of ``text``, with BOS where the tokenizer adds one, with special tokens read as such or not."""

    def find_specials(self, text: str) -> list[str]:
        """The texts inside ``text`` that name special tokens."""

    def token_text(self, token: int) -> bytes:
        """The bytes of one token, a special one's too."""


@dataclass(frozen=True)
class ChatFormat:
    """How a model writes a chat.

    Attributes:
        template: The Jinja source; None for a base model.
        tool_template: The one for chats with tools; the same where there is no second one.
        bos: Text of BOS.
        eos: Text of EOS.
        adds_bos: The tokenizer puts BOS before a text by itself.
    """

    template: str | None
    tool_template: str | None
    bos: str
    eos: str
    adds_bos: bool


class TextModel(ABC):
    """What :class:`serve.engine.model.Model` asks about text.

    Args:
        vocabulary: The tokenizer.
        n_vocab: Size of the vocabulary.
        chat_format: How it writes a chat.
    """

    def __init__(self, vocabulary: Vocabulary, n_vocab: int, chat_format: ChatFormat) -> None:
        self._words = vocabulary
        self._n_vocab = n_vocab
        self._chat_format = chat_format

    def tokenize(self, request: GenerateRequest) -> Sequence[int]:
        """The prompt's token ids.

        Raises:
            RequestError: No template, a template that refuses, or a token id outside the vocabulary.
        """
        if request.messages is not None:
            return self._tokenize_chat(request)
        match request.prompt:
            case str() as text:
                return self._words.tokenize(text, add_special=True, parse_special=True)
            case tuple() as tokens:
                return self._checked(tokens)
        raise RequestError("The request has neither messages nor a prompt.", param="prompt")

    def shown(self, texts: Sequence[str]) -> frozenset[int]:
        """The special tokens that ``texts`` name; texts that are no token of this vocabulary name none."""
        found = (self._words.tokenize(text, add_special=False, parse_special=True) for text in texts)
        return frozenset(tokens[0] for tokens in found if len(tokens) == 1)

    def matcher(self, request: GenerateRequest) -> TokenMatcher | None:
        """A matcher for the answer, where its form is constrained.

        Raises:
            RequestError: The constraint cannot be used.
        """
        if request.constraint is None:
            return None
        if request.ignore_eos:
            raise RequestError("An answer with a grammar ends with it.", "Leave `ignore_eos` out.", "ignore_eos")
        return self._grammars.compile(request.constraint)

    def tokenize_text(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of any text; see :meth:`Vocabulary.tokenize`."""
        return self._words.tokenize(text, add_special=add_special, parse_special=parse_special)

    def detokenize(self, tokens: Sequence[int]) -> str:
        """The text of token ids, special tokens included.

        Raises:
            RequestError: An id is outside the vocabulary.
        """
        return b"".join(map(self._words.token_text, self._checked(tokens))).decode("utf-8", errors="replace")

    @property
    @abstractmethod
    def _grammars(self) -> "GrammarVocabulary":
        """What constraints are compiled with."""

    @cached_property
    def _template(self) -> ChatTemplate:
        return self._compiled(self._chat_format.template)

    @cached_property
    def _tool_template(self) -> ChatTemplate:
        return self._compiled(self._chat_format.tool_template)

    def _compiled(self, source: str | None) -> ChatTemplate:
        if source is None:
            raise RequestError(
                "This model has no chat template: it is a base model, made to continue text.",
                "Use /v1/completions, or choose an instruction-tuned model.",
                "model",
            )
        return ChatTemplate(source, self._chat_format.bos, self._chat_format.eos)

    def _tokenize_chat(self, request: GenerateRequest) -> list[int]:
        assert request.messages is not None
        find_specials = self._words.find_specials
        messages = [mark_message(message, find_specials) for message in request.messages]
        template_args = mark_specials(request.template_args, find_specials)
        with_tools = "tools" in template_args or any(message["role"] == "tool" for message in messages)
        template = self._tool_template if with_tools else self._template
        text = template.render(messages, **template_args) + request.answer_prefix
        # Most templates write BOS themselves; the tokenizer must not add a second one.
        bos = self._chat_format.bos
        add_special = self._chat_format.adds_bos and not (bos and text.startswith(bos))
        tokens: list[int] = []
        for piece, parse_special in split_marked(text):
            tokens += self._words.tokenize(piece, add_special=add_special, parse_special=parse_special)
            add_special = False
        return tokens

    def _checked(self, tokens: Sequence[int]) -> Sequence[int]:
        # An id outside the vocabulary ends llama.cpp's process, and reads foreign memory in MLX.
        for token in tokens:
            if not 0 <= token < self._n_vocab:
                raise RequestError(f"Token {token} is not in this model's vocabulary of {self._n_vocab}.")
        return tokens
