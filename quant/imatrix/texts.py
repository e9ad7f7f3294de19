"""What a model reads for its importance matrix: the text that is shipped, files, or the person's own chats."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from localllm.conversations import ConversationStore
from localllm.errors import QuantizeError
from quant.chunks import Text

_CALIBRATION = Path(__file__).with_name("calibration")
# Turns of all kinds first: where a person asks for few chunks, they are not all prose.
_FILES = ("dialogue", "code", "languages", "prose", "maths", "structured", "tools")
_CHATS_NAME = "own chats"

Turns = Sequence[Mapping[str, str]]


def default_texts() -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """The text that comes with the program, and its names; ``calibration/README.md`` says where it is from."""
    texts = [(_CALIBRATION / f"{name}.txt").read_text(encoding="utf-8") for name in _FILES]
    return tuple(Text(text) for text in texts), ("localllm calibration text",)


def texts_of_files(paths: Sequence[Path]) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """The text of files, and their names without folders; bytes that are no UTF-8 become replacement characters.

    Raises:
        QuantizeError: A file cannot be read.
    """
    texts = []
    for path in paths:
        try:
            texts.append(Text(path.read_text(encoding="utf-8", errors="replace")))
        except OSError as error:
            raise QuantizeError(f"{path.name} cannot be read: {error.strerror}.") from error
    return tuple(texts), tuple(path.name for path in paths)


def texts_of_chats(
    store: ConversationStore, render: Callable[[Turns], str], *, limit: int = 200
) -> tuple[tuple[Text, ...], tuple[str, ...]]:
    """The person's own chats, newest first, as the model would read them.

    Args:
        store: The conversations.
        render: The model's chat template: from ``role`` and ``content`` of all turns to one text.
        limit: At most so many conversations.

    Raises:
        QuantizeError: There are no chats.
    """
    texts = []
    for conversation in store.list(limit):
        turns = [{"role": turn.role, "content": turn.content} for turn in store.active_path(conversation.id)]
        if conversation.system_prompt:
            turns.insert(0, {"role": "system", "content": conversation.system_prompt})
        if any(turn["role"] == "assistant" for turn in turns):
            texts.append(Text(render(turns), special=True))
    if not texts:
        raise QuantizeError("There are no chats to learn from yet.", "Chat first, or give a text file.")
    return tuple(texts), (_CHATS_NAME,)
