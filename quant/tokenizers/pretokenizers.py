"""The pre-tokenizers of byte-level BPE models: how text is cut before merges apply.

GGUF names the pre-tokenizer (``tokenizer.ggml.pre``); tokenizer.json holds it as regular expressions. A directory is
recognised by the hash of a fixed text's token ids, as llama.cpp's converter does it, or by the expressions themselves.
What neither tells is refused: a wrong pre-tokenizer gives wrong tokens without any sign of it.
"""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from localllm.errors import InvalidModelError
from localllm.sanitize import one_line
from quant.tokenizers import expressions

if TYPE_CHECKING:
    from tokenizers import Tokenizer

Steps = tuple[tuple[Any, ...], ...]

# The text whose token ids are hashed. It and the hashes are facts of the format (llama.cpp's converter).
CHECK_TEXT = (
    "\n \n\n \n\n\n \t \t\t \t\n  \n   \n    \n     \n🚀 (normal) 😶\u200d🌫️ (multiple emojis concatenated) ✅ 🦙🦙 "
    "3 33 333 3333 33333 333333 3333333 33333333 3.3 3..3 3...3 កាន់តែពិសេសអាច😁 ?我想在apple工作1314151天\uff5e "
    "------======= нещо на Български ''''''```````\"\"\"\"......!!!!!!?????? "
    "I've been 'told he's there, 'RE you sure? 'M not sure I'll make it, 'D you like some tea? We'Ve a'lL"
)


@dataclass(frozen=True)
class PreTokenizer:
    """One pre-tokenizer of llama.cpp, as tokenizer.json would hold it.

    Attributes:
        name: ``tokenizer.ggml.pre``.
        steps: Its parts in order; empty when only its hash is known: such a model can be exported, not imported.
        hashes: Of :data:`CHECK_TEXT`'s token ids, for the published tokenizers that use it.
        nfc: Text is normalized to NFC first. llama.cpp does not do this.
        ignore_merges: A piece that is a token as a whole is taken as it is.
        adds_bos: What llama.cpp does when the file does not say.
    """

    name: str
    steps: Steps = ()
    hashes: tuple[str, ...] = ()
    nfc: bool = False
    ignore_merges: bool = False
    adds_bos: bool = False


def _split(*patterns: str) -> Steps:
    return (*(("Split", pattern, "Isolated", False) for pattern in patterns), _BYTES)


_BYTES = ("ByteLevel", False, False)  # add_prefix_space, use_regex
_BYTES_AND_WORDS = ("ByteLevel", False, True)
_DIGITS = ("Digits", True)

# In order of preference where several have the same steps.
PRE_TOKENIZERS = (
    PreTokenizer(
        "gpt-2",
        (_BYTES_AND_WORDS,),
        (
            "3ce83efda5659b07b1ad37ca97ca5797ea4285d9b9ab0dc679e4a720c9da7454",
            "0fe1cf6eda062318a1af7270f3331a85c539a01778ff948e24388e949c5282f4",
        ),
    ),
    PreTokenizer("phi-2", (_BYTES_AND_WORDS,), ("fcace8b9cac38ce847670c970cd5892031a753a1ef381abd1d9af00f713da085",)),
    PreTokenizer(
        "olmo", (_BYTES_AND_WORDS,), ("b6dc8df998e1cfbdc4eac8243701a65afe638679230920b50d6f17d81c098166",), nfc=True
    ),
    PreTokenizer("mpt", (_BYTES_AND_WORDS,), nfc=True),  # the same tokenizer as OLMo's
    PreTokenizer(
        "smollm",
        (_DIGITS, _BYTES_AND_WORDS),
        ("855059429035d75a914d1eda9f10a876752e281a054a7a3d421ef0533e5b6249",),
    ),
    PreTokenizer(
        "starcoder",
        (_DIGITS, _BYTES_AND_WORDS),
        ("35d91631860c815f952d711435f48d356ebac988362536bed955d43bfa436e34",),
    ),
    PreTokenizer(
        "refact",
        (_DIGITS, _BYTES_AND_WORDS),
        ("6221ad2852e85ce96f791f476e0b390cf9b474c9e3d1362f53a24a06dc8220ff",),
    ),
    PreTokenizer(
        "command-r",
        (_DIGITS, _BYTES_AND_WORDS),
        ("9c2227e4dd922002fb81bde4fc02b0483ca4f12911410dee2255e4987644e3f8",),
        nfc=True,
    ),
    PreTokenizer(
        "llama-bpe",
        _split(expressions.LLAMA3),
        ("0ef9807a4087ebef797fc749390439009c3b9eda9ad1a097abbe738f486c01e5",),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(
        "dbrx", _split(expressions.LLAMA3), ("a8594e3edff7c29c003940395316294b2c623e09894deebbc65f33f1515df79e",)
    ),
    PreTokenizer(
        "smaug-bpe", _split(expressions.LLAMA3), ("c136ed14d01c2745d4f60a9596ae66800e2b61fa45643e72436041855ad4089d",)
    ),
    PreTokenizer(
        "qwen2",
        _split(expressions.QWEN2),
        (
            "e636dc30a262dcc0d8c323492e32ae2b70728f4df7dfe9737d9f920a282b8aea",
            "d4540891389ea895b53b399da6ac824becc30f2fba0e9ddbb98f92e55ca0e97c",
        ),
        nfc=True,
    ),
    PreTokenizer(
        "deepseek-r1-qwen",
        _split(expressions.QWEN2),
        ("b3f499bb4255f8ca19fccd664443283318f2fd2414d5e0b040fbdd0cc195d6c5",),
    ),
    PreTokenizer(
        "stablelm2", _split(expressions.QWEN2), ("32d85c31273f8019248f2559fed492d929ea28b17e51d81d3bb36fff23ca72b3",)
    ),
    PreTokenizer(
        "qwen35",
        _split(expressions.QWEN35),
        (
            "d30d75d9059f1aa2c19359de71047b3ae408c70875e8a3ccf8c5fba56c9d8af4",
            "1444df51289cfa8063b96f0e62b1125440111bc79a52003ea14b6eac7016fd5f",
        ),
        nfc=True,
    ),
    PreTokenizer(
        "tekken",
        _split(expressions.TEKKEN),
        ("63b97e4253352e6f357cc59ea5b583e3a680eaeaf2632188c2b952de2588485e",),
        ignore_merges=True,
        adds_bos=True,
    ),
    PreTokenizer(
        "gpt-4o", _split(expressions.GPT4O), ("ccc2ef013c104be7bae2965776d611e1d7a8a2a9c547dd93a682c9a9fc80352e",)
    ),
    PreTokenizer(
        "llama4", _split(expressions.GPT4O), ("d353350c764d8c3b39c763113960e4fb4919bea5fbf208a0e3b22e8469dc7406",)
    ),
    PreTokenizer(
        "falcon",
        (
            ("Punctuation", "Contiguous"),
            _BYTES_AND_WORDS,
            ("Digits", False),
            ("Split", "[0-9][0-9][0-9]", "Isolated", False),
        ),
        ("8aeee3860c56296a157a1fe2fad249ec40aa59b1bb5709f4ade11c4e6fe652ed",),
    ),
    PreTokenizer(
        "deepseek-llm",
        (
            *_split(
                expressions.LINE_BREAK,
                expressions.DEEPSEEK_WORDS,
                expressions.DEEPSEEK_PUNCTUATION,
                r"\s+$",
                expressions.DEEPSEEK_CJK,
            )[:-1],
            ("Digits", True),
            _BYTES,
        ),
        ("049ecf7629871e3041641907f3de7c733e4dbfdc736f57d882ba0b0845599754",),
    ),
    PreTokenizer(
        "deepseek-coder",
        (
            *_split(expressions.LINE_BREAK, r"\s?\p{L}+", r"\s?\p{P}+", expressions.DEEPSEEK_CJK)[:-1],
            ("Digits", True),
            _BYTES,
        ),
        ("347715f544604f9118bb75ed199f68779f423cabb20db6de6f31b908d04d7821",),
    ),
    PreTokenizer(
        "deepseek-v3",
        _split(r"\p{N}{1,3}", expressions.DEEPSEEK_KANA, expressions.DEEPSEEK_V3),
        ("877081d19cf6996e2c4ff0e1236341e9b7bde288f5311a56a937f0afbbb3aeb5",),
    ),
    # Variants of the architectures that are converted here, known by their hash alone.
    PreTokenizer("falcon3", hashes=("9d032fcbd5501f4a38150912590928bfb36091efb5df11b8e2124b0390e3fb1e",)),
    PreTokenizer("pixtral", hashes=("0e9433cbbb161f89e264eb32e8e64bfe69e834973ffca5d41d3948a604a3e2a3",)),
    PreTokenizer("megrez", hashes=("d4c8f286ea6b520b3d495c4455483cfa2302c0cfcd4be05d781b6a8a0a7cdaf1",)),
    PreTokenizer("midm-2.0", hashes=("f6791d196f87ce6b56a7d234be618e0d58f8cda3549416635b2bebcd22cd95c4",)),
    PreTokenizer("seed-coder", hashes=("d5f1dd6f980fec569fb218a81a7658ac45fc56b38c5a0adeb1c232fbe04ef5ec",)),
)


def named(name: str) -> PreTokenizer:
    """The pre-tokenizer of a GGUF file.

    Raises:
        InvalidModelError: It is not one whose expressions are known here.
    """
    found = next((pre for pre in PRE_TOKENIZERS if pre.name == name and pre.steps), None)
    if found is None:
        known = ", ".join(pre.name for pre in PRE_TOKENIZERS if pre.steps)
        raise InvalidModelError(
            f"The pre-tokenizer {one_line(name, 40) or 'default'!r} of this GGUF file is not known.",
            f"Take the model from its safetensors instead. Known: {known}.",
        )
    return found


def recognise(tokenizer: "Tokenizer", definition: Mapping[str, Any]) -> PreTokenizer:
    """The pre-tokenizer of a byte-level tokenizer.json.

    Args:
        tokenizer: It, loaded.
        definition: It, as JSON.

    Raises:
        InvalidModelError: It is not known; the message holds the hash.
    """
    # The published hashes were made with special tokens added; not every directory adds them.
    digests = [_hash(tokenizer, special=True), _hash(tokenizer, special=False)]
    hashed = [pre for pre in PRE_TOKENIZERS if set(digests) & set(pre.hashes)]
    steps, nfc = tuple(_steps(definition.get("pre_tokenizer"))), _normalizes(definition.get("normalizer"))
    ignore_merges = bool(definition["model"].get("ignore_merges"))
    same = [pre for pre in PRE_TOKENIZERS if pre.steps == steps and pre.ignore_merges == ignore_merges]
    # The expressions are the truth: one text cannot tell all of them apart. The hash tells models of one kind apart.
    if same and nfc is not None:
        alike = [pre for pre in same if pre in hashed] or [pre for pre in same if pre.nfc == nfc] or same
        return alike[0]
    if hashed:
        return hashed[0]
    raise InvalidModelError(
        f"This tokenizer's pre-tokenizer is not known (hash {digests[0]}).",
        "It was not converted, because a guess would give wrong tokens. A newer localllm may know it.",
    )


def pre_tokenizer_json(pre: PreTokenizer) -> dict[str, Any]:
    """The ``pre_tokenizer`` of a tokenizer.json."""
    parts = [_part(step) for step in pre.steps]
    return parts[0] if len(parts) == 1 else {"type": "Sequence", "pretokenizers": parts}


def _hash(tokenizer: "Tokenizer", *, special: bool) -> str:
    ids = tokenizer.encode(CHECK_TEXT, add_special_tokens=special).ids
    return hashlib.sha256(str(ids).encode()).hexdigest()


def _steps(part: Any) -> Iterator[tuple[Any, ...]]:
    """A ``pre_tokenizer`` as a flat sequence of its parts; what does not change the cuts is left out."""
    match part:
        case {"type": "Sequence", "pretokenizers": parts}:
            for inner in parts:
                yield from _steps(inner)
        case {"type": "Split", "pattern": {"Regex": pattern}}:
            yield ("Split", pattern, part.get("behavior"), bool(part.get("invert")))
        case {"type": "Digits"}:
            yield ("Digits", bool(part.get("individual_digits")))
        case {"type": "Punctuation"}:
            yield ("Punctuation", part.get("behavior", "Isolated"))
        case {"type": "ByteLevel"}:
            yield ("ByteLevel", bool(part.get("add_prefix_space")), bool(part.get("use_regex", True)))
        case _:
            yield ("unknown", str(part))


def _normalizes(part: Any) -> bool | None:
    """Whether a ``normalizer`` is NFC (True) or nothing (False); None for any other."""
    match part:
        case None:
            return False
        case {"type": "NFC"}:
            return True
        case {"type": "Sequence", "normalizers": parts}:
            inner = [_normalizes(each) for each in parts]
            return None if None in inner else any(inner)
        case _:
            return None


def _part(step: tuple[Any, ...]) -> dict[str, Any]:
    match step:
        case ("Split", pattern, behavior, invert):
            return {"type": "Split", "pattern": {"Regex": pattern}, "behavior": behavior, "invert": invert}
        case ("Digits", individual):
            return {"type": "Digits", "individual_digits": individual}
        case ("Punctuation", behavior):
            return {"type": "Punctuation", "behavior": behavior}
        case (_, add_prefix_space, use_regex):
            kind = {"type": "ByteLevel", "add_prefix_space": add_prefix_space, "use_regex": use_regex}
            return kind | {"trim_offsets": False}
    raise AssertionError(step)
