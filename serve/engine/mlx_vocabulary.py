"""The vocabulary of a model directory: text to token ids, and each token's bytes."""

import json
import re
from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from localllm.errors import EngineLoadError

_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
# Some models (DeepSeek) forget to mark the tokens of their chat template as special: these shapes are.
_SPECIAL_SHAPE = re.compile(r"<(\||\uff5c).*\1>")  # U+FF5C is DeepSeek's bar
# What ends a turn in the common chat templates; a base model's settings often name the end of a document only.
_END_OF_TURN = frozenset(
    {"<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<end_of_turn>", "<|end|>", "<|end_of_text|>", "<|endoftext|>"}
)


def _stand_ins() -> dict[str, int]:
    """GPT-2's characters for bytes: printable bytes for themselves, the others for those from U+0100 on."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    return {chr(byte): byte for byte in printable} | {chr(0x100 + n): byte for n, byte in enumerate(others)}


_BYTE_OF = _stand_ins()


class Vocabulary:
    """Tokenizes as the model's own tokenizer does.

    Args:
        tokenizer: Read from ``tokenizer.json`` or made from another form.
        bos: Text of BOS, or empty.
        eos: Text of EOS, or empty.
        end_tokens: Token ids that end a generation, as the model's settings name them.
        chat_template: The Jinja source, or None.

    Attributes:
        bos: Text of BOS.
        eos: Text of EOS.
        end_tokens: Token ids that end a generation: those given, EOS, and the usual ends of a turn.
        chat_template: The Jinja source, or None.
    """

    def __init__(
        self,
        tokenizer: Tokenizer,
        *,
        bos: str = "",
        eos: str = "",
        end_tokens: Sequence[int] = (),
        chat_template: str | None = None,
    ) -> None:
        self._tokenizer = tokenizer
        self.bos = bos
        self.eos = eos
        self.chat_template = chat_template
        self._added: dict[int, str] = {
            token: added.content for token, added in tokenizer.get_added_tokens_decoder().items()
        }
        self._specials = {
            token: added.content
            for token, added in tokenizer.get_added_tokens_decoder().items()
            if added.special or _SPECIAL_SHAPE.fullmatch(added.content)
        }
        ends = {token for token, text in self._specials.items() if text == eos or text in _END_OF_TURN}
        self.end_tokens = frozenset(ends | set(end_tokens))
        self._pieces: dict[int, bytes] = {}
        described: Mapping[str, Any] = json.loads(tokenizer.to_str()).get("decoder") or {}
        kinds = {part.get("type") for part in [described, *described.get("decoders", ())]}
        self._byte_level = "ByteLevel" in kinds
        self._byte_fallback = "ByteFallback" in kinds
        self._metaspace = bool(kinds & {"Metaspace", "Replace"})

    def tokenize(self, text: str, *, add_special: bool, parse_special: bool) -> list[int]:
        """Token ids of ``text``.

        Args:
            text: Any text.
            add_special: Put BOS before it where the tokenizer is set to.
            parse_special: Read ``<|im_end|>`` and its like as the tokens they name, not as text.
        """
        text = text.encode("utf-8", errors="replace").decode()  # a lone surrogate is no text
        tokens = self._encode(self._tokenizer, text) if parse_special else self._encode_plain(text)
        return self._prefix + tokens if add_special else tokens

    def find_specials(self, text: str) -> list[str]:
        """The texts inside ``text`` that name control tokens."""
        return self._special_pattern.findall(text) if self._specials else []

    def piece(self, token: int) -> bytes:
        """The bytes of one token; special tokens give none. May be a part of a character."""
        return b"" if token in self._specials or token in self.end_tokens else self.token_text(token)

    def token_text(self, token: int) -> bytes:
        """The bytes of one token, a special one's too; none for an id that only pads the model's output."""
        piece = self._pieces.get(token)
        if piece is None:
            piece = self._pieces[token] = self._bytes_of(token)
        return piece

    def to_json(self) -> str:
        """The tokenizer as ``tokenizer.json`` has it, with every special token marked as such."""
        described = json.loads(self._tokenizer.to_str())
        for added in described["added_tokens"]:
            added["special"] = added["id"] in self._specials
        return json.dumps(described)

    @property
    def adds_bos(self) -> bool:
        """Whether the tokenizer puts BOS before a text."""
        return bool(self._prefix)

    @cached_property
    def _prefix(self) -> list[int]:
        # What comes before a text. What some tokenizers put behind it (EOS) would end the answer before it began.
        bare = self._encode(self._tokenizer, "a")
        dressed: list[int] = self._tokenizer.encode("a").ids
        for start in range(len(dressed) - len(bare) + 1):
            if dressed[start : start + len(bare)] == bare:
                return dressed[:start]
        return []

    @cached_property
    def _special_pattern(self) -> re.Pattern[str]:
        longest_first = sorted(self._specials.values(), key=len, reverse=True)
        return re.compile("|".join(map(re.escape, longest_first)))

    @cached_property
    def _plain(self) -> Tokenizer:
        # Made when first needed: it doubles the tokenizer's memory, and few texts hold a special token's name.
        plain = Tokenizer.from_str(self.to_json())
        plain.encode_special_tokens = True
        return plain

    def _encode_plain(self, text: str) -> list[int]:
        if not self.find_specials(text):
            return self._encode(self._tokenizer, text)
        tokens = self._encode(self._plain, text)
        if self._specials.keys().isdisjoint(tokens):
            return tokens
        # The special text is also an ordinary entry of the vocabulary: only letter by letter can it not be found.
        return [token for letter in text for token in self._encode(self._plain, letter)]

    def _bytes_of(self, token: int) -> bytes:
        text = self._added.get(token)
        if text is not None:
            return text.encode()
        text = self._tokenizer.id_to_token(token)
        if text is None:
            return b""
        if self._byte_level:
            # A character that stands for no byte comes from a tokenizer that mixes both forms: it is itself.
            return b"".join(bytes([_BYTE_OF[c]]) if c in _BYTE_OF else c.encode() for c in text)
        if self._byte_fallback and (found := _BYTE_TOKEN.fullmatch(text)):
            return bytes([int(found[1], 16)])
        if self._metaspace:
            return text.replace("▁", " ").encode()
        decoded: str = self._tokenizer.decode([token], skip_special_tokens=False)
        return decoded.encode()

    @staticmethod
    def _encode(tokenizer: Tokenizer, text: str) -> list[int]:
        ids: list[int] = tokenizer.encode(text, add_special_tokens=False).ids
        return ids


def load_vocabulary(directory: Path, end_tokens: Sequence[int]) -> Vocabulary:
    """Read the tokenizer of a model directory; code in it is never run.

    Args:
        directory: Where ``tokenizer.json`` (or another form that transformers reads) is.
        end_tokens: Token ids that end a generation, from the model's settings.

    Raises:
        EngineLoadError: There is none, or it is damaged or of a kind that cannot be read.
    """
    from transformers import AutoTokenizer  # deferred: 1.5 s, and only an MLX engine's process needs it

    try:
        loaded = AutoTokenizer.from_pretrained(str(directory), trust_remote_code=False, local_files_only=True)
        tokenizer = loaded.backend_tokenizer
    except Exception as error:  # the readers of the many forms raise whatever a damaged file makes them
        raise EngineLoadError(
            f"The model's tokenizer cannot be read ({type(error).__name__}).",
            "Pull the model again; a tokenizer that comes as a program is never run.",
        ) from error
    template = loaded.chat_template
    if isinstance(template, dict):  # several, by name
        template = template.get("default")
    return Vocabulary(
        tokenizer,
        bos=str(loaded.bos_token or ""),
        eos=str(loaded.eos_token or ""),
        end_tokens=end_tokens,
        chat_template=template if isinstance(template, str) else None,
    )
