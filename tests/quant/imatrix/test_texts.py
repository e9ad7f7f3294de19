"""What a model reads: the text that is shipped, files, and the person's own chats."""

from pathlib import Path

import pytest

from localllm.conversations import ConversationStore
from localllm.errors import QuantizeError
from quant.chunks import Text
from quant.imatrix.texts import default_texts, texts_of_chats, texts_of_files


def test_the_shipped_text_is_of_a_useful_size_and_many_scripts():
    texts, names = default_texts()
    joined = "".join(text.text for text in texts)
    assert 60_000 <= len(joined.encode()) <= 150_000
    assert names == ("localllm calibration text",)
    for sample in ("def ", "SELECT ", "<tool_call>", "\\frac", "Großmutter", "é", "ж", "ع", "ह", "中", "の", "한"):
        assert sample in joined
    assert "\ufffd" not in joined


def test_files_are_named_without_their_folders(tmp_path):
    (tmp_path / "a.txt").write_bytes(b"caf\xe9")
    texts, names = texts_of_files([tmp_path / "a.txt"])
    assert texts == (Text("caf\ufffd"),)
    assert names == ("a.txt",)
    with pytest.raises(QuantizeError, match=r"none\.txt cannot be read"):
        texts_of_files([tmp_path / "none.txt"])


def test_own_chats_are_rendered_with_their_special_tokens(tmp_path: Path):
    store = ConversationStore(tmp_path / "c.db")

    def render(turns):
        return "".join(f"<{turn['role']}>{turn['content']}" for turn in turns)

    with pytest.raises(QuantizeError, match="no chats"):
        texts_of_chats(store, render)
    conversation = store.create(system_prompt="Be brief.")
    question = store.append(conversation.id, None, "user", "Hello?")
    store.append(conversation.id, question.id, "assistant", "Hi.")
    store.create()  # an empty one has nothing to teach
    texts, names = texts_of_chats(store, render)
    store.close()
    assert texts == (Text("<system>Be brief.<user>Hello?<assistant>Hi.", special=True),)
    assert names == ("own chats",)
