"""What the GGUF fuzzer starts from: small files of every kind that the format knows, and a dictionary of its words."""

import struct
from pathlib import Path

from localllm.gguf_types import ARRAY, NUMBERS, STRING, TENSOR_TYPES, UINT32
from tests.fakes.gguf_files import ARCHITECTURE, pair, raw_gguf, tensor, text, write_tiny_gguf

CORPUS = Path(__file__).parent / "corpus" / "gguf"
_NAMES = (
    "general.architecture",
    "general.alignment",
    "general.file_type",
    "llama.block_count",
    "llama.context_length",
    "llama.attention.head_count_kv",
    "split.no",
    "split.count",
    "tokenizer.ggml.tokens",
    "tokenizer.chat_template",
)


def _u32(key: str, value: int) -> bytes:
    return pair(key, UINT32, struct.pack("<I", value))


def _array(kind: int, count: int, content: bytes) -> bytes:
    return struct.pack("<IQ", kind, count) + content


def seeds() -> dict[str, bytes]:
    """Files by name; all but the big one have less than 2 kB."""
    numbers = [pair(f"n{kind}", kind, bytes([1]) + bytes(layout.size - 1)) for kind, layout in NUMBERS.items()]
    arrays = [
        pair(f"a{kind}", ARRAY, _array(kind, 3, bytes([1]) * 3 * layout.size)) for kind, layout in NUMBERS.items()
    ]
    strings = pair("tokenizer.ggml.tokens", ARRAY, _array(STRING, 3, text("a") + text("") + text("ä")))
    shape = [_u32("llama.block_count", 2), _u32("llama.context_length", 256), _u32("llama.embedding_length", 64)]
    found = {
        "bare": raw_gguf(),
        "version2": raw_gguf(version=2),
        "numbers": raw_gguf([ARCHITECTURE, *numbers]),
        "arrays": raw_gguf([ARCHITECTURE, *arrays]),
        "strings": raw_gguf([ARCHITECTURE, strings, pair("tokenizer.chat_template", STRING, text("{{ messages }}"))]),
        # Too many numbers to keep, so they are stepped over.
        "long": raw_gguf([ARCHITECTURE, pair("a", ARRAY, _array(0, 5000, b""))]),
        "later_part": raw_gguf([_u32("split.no", 1), _u32("split.count", 2)], [tensor("w", [8])], bytes(32)),
        "aligned": raw_gguf(
            [ARCHITECTURE, _u32("general.alignment", 64)],
            [tensor("a", [4]), tensor("b", [4, 2], offset=64)],
            bytes(96),
            alignment=64,
        ),
        "shaped": raw_gguf(
            [ARCHITECTURE, *shape, _u32("llama.attention.head_count", 4), _u32("general.file_type", 15)],
            [tensor("output_norm.weight", [64])],
            bytes(256),
        ),
    }
    for number, kind in TENSOR_TYPES.items():
        found[f"type_{kind.name}"] = raw_gguf(
            [ARCHITECTURE], [tensor("w", [kind.block, 1, 1, 1], kind=number)], bytes(kind.n_bytes)
        )
    return found


def write_seeds(directory: Path) -> None:
    """Write all seeds into ``directory``, with a whole small model among them, and the dictionary beside it."""
    directory.mkdir()
    for name, content in seeds().items():
        (directory / name).write_bytes(content)
    # A model as the reference writer makes it, without most of its weights: long inputs are slow to mutate.
    whole = write_tiny_gguf(directory / "tiny", n_layer=1).read_bytes()
    (directory / "tiny").write_bytes(whole[: 1 << 14])


def write_dictionary(path: Path) -> None:
    """Write libFuzzer's dictionary: words with their lengths, and the numbers that are somebody's limit."""
    words = [text(name) for name in _NAMES]
    words += [struct.pack("<I", number) for number in (*range(13), *TENSOR_TYPES)]
    words += [struct.pack("<Q", (1 << bits) + more) for bits in (6, 16, 18, 20, 24, 31, 32, 63) for more in (-1, 0)]
    words += [struct.pack("<Q", (1 << 64) - 1), b"GGUF", b"\x1b[2J", b"\xff", b"\0"]
    lines = ['"' + "".join(f"\\x{byte:02x}" for byte in word) + '"' for word in dict.fromkeys(words)]
    path.write_text("\n".join(lines) + "\n")
