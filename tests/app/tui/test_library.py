import json
from dataclasses import asdict

import pytest

from app.tui.library import Library
from localllm.adapters import AdapterManifest, AdapterStore
from localllm.errors import UsageError
from localllm.models.manifest import ModelFile, Parent
from localllm.models.store import ModelStore
from tests.fakes.models import put_model


@pytest.fixture
def library(home):
    return Library(ModelStore(home), AdapterStore(home))


def put_adapter(home, name, base, size=4):
    directory = home.adapters / name
    directory.mkdir(parents=True)
    (directory / "adapter.gguf").write_bytes(b"GGUF")
    adapter = AdapterManifest(name, base, "llama", 8, 16.0, (ModelFile("adapter.gguf", size, "0" * 64),))
    (directory / "manifest.json").write_text(json.dumps(asdict(adapter)))
    return adapter


def listed(library):
    return [(entry.depth, entry.name) for entry in library.entries()]


def test_each_stands_under_what_it_was_made_from(library, home):
    put_model(home, "a", "q4_1", parent=Parent("b:f16", "0" * 64, "quantize"))
    put_model(home, "b", "f16")
    put_model(home, "c", "q8_0", parent=Parent("gone:f16", "0" * 64, "quantize"))
    put_model(home, "d", "q2_k", parent=Parent("a:q4_1", "0" * 64, "prune"))
    put_adapter(home, "poems", "b")
    put_adapter(home, "loose", "gone")
    assert listed(library) == [
        (0, "b:f16"),
        (1, "+poems"),
        (1, "a:q4_1"),
        (2, "d:q2_k"),
        (0, "c:q8_0"),
        (0, "+loose"),
    ]


def test_parents_in_a_circle_are_each_listed_once(library, home):
    put_model(home, "a", "f16", parent=Parent("b:f16", "0" * 64, "fuse"))
    put_model(home, "b", "f16", parent=Parent("a:f16", "0" * 64, "fuse"))
    put_model(home, "c", "f16", parent=Parent("c:f16", "0" * 64, "fuse"))
    assert listed(library) == [(0, "a:f16"), (1, "b:f16"), (0, "c:f16")]


def test_an_adapter_is_used_with_its_model(library, home):
    put_adapter(home, "poems", "a")
    (loose,) = library.entries()
    with pytest.raises(UsageError, match="not here"):
        library.chat_name(loose)
    put_model(home, "a", "q4_1")
    base, adapter = library.entries()
    assert library.chat_name(base) == "a:q4_1"
    assert library.chat_name(adapter) == "a:q4_1+poems"


def test_what_a_deletion_means(library, home):
    put_model(home, "a", "q4_1")
    put_adapter(home, "poems", "a", size=4000)
    base, adapter = library.entries()
    assert library.consequences(base, {"a:q4_1+poems"}) == [
        "4 B are freed.",
        "It is loaded: the chat uses it now.",
        "Of no use without it: +poems.",
    ]
    assert library.consequences(adapter, {"a:q4_1"}) == ["4.0 kB are freed."]
    assert len(library.consequences(adapter, {"a:q4_1+poems"})) == 2
    assert library.delete(adapter) == "4.0 kB freed"
    assert listed(library) == [(0, "a:q4_1")]


def test_files_that_are_linked_elsewhere_free_nothing(library, home, tmp_path):
    put_model(home, "a", "q4_1")
    (tmp_path / "kept.gguf").hardlink_to(home.models / "a" / "q4_1" / "model.gguf")
    (entry,) = library.entries()
    assert library.consequences(entry, ()) == ["0 B are freed."]
    assert library.delete(entry) == "its files have another link and stay there"
