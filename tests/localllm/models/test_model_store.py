"""The store itself: finding, listing, removing, and what was damaged."""

import json
import os
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
from filelock import FileLock

from localllm.errors import InvalidModelError, ModelNotFoundError, StoreError, UsageError
from localllm.models.aliases import ALIASES
from localllm.models.manifest import MANIFEST, Manifest, ModelFile, Parent, write_manifest
from localllm.models.pull import pull


def put(
    store, name: str, variant: str, *, form: str = "gguf", sha256: str = "0" * 64, data: bytes = b"data"
) -> Manifest:
    manifest = Manifest(name, variant, "test", form, (ModelFile("model.gguf", len(data), sha256),))
    directory = store.directory(manifest)
    directory.mkdir(parents=True)
    (directory / "model.gguf").write_bytes(data)
    write_manifest(directory, manifest)
    return manifest


def test_an_empty_store(store):
    assert store.list() == []
    assert store.damaged() == []
    with pytest.raises(ModelNotFoundError) as raised:
        store.resolve("anything")
    assert "localllm pull starter" in raised.value.hint
    with pytest.raises(ModelNotFoundError) as raised:
        store.resolve("starter")
    assert "localllm pull starter" in raised.value.hint


def test_models_are_listed_in_order_and_found_by_name(store):
    for name, variant in [("b", "q8_0"), ("a", "f16"), ("b", "q4_0")]:
        put(store, name, variant)
    assert [str(model.model_name) for model in store.list()] == ["a:f16", "b:q4_0", "b:q8_0"]
    assert store.resolve("A").variant == "f16"
    assert store.resolve("b").variant == "q4_0"
    assert store.resolve("b:q8_0").variant == "q8_0"
    put(store, "b", "q4_k_m")
    put(store, "b", "bf16", form="hf")
    assert store.resolve("b").variant == "q4_k_m"


def test_close_names_are_suggested(store):
    put(store, "smollm2-135m", "q4_1")
    with pytest.raises(ModelNotFoundError) as raised:
        store.resolve("smollm-135m")
    assert "smollm2-135m" in raised.value.hint
    with pytest.raises(ModelNotFoundError) as raised:
        store.resolve("smollm2-135m:q8_0")
    assert "smollm2-135m:q4_1" in raised.value.hint
    with pytest.raises(UsageError):
        store.resolve("../x")


def test_the_starter_is_found_under_any_name(store):
    put(store, "mine", "v1", sha256=ALIASES["starter"].sha256)
    assert store.resolve("Starter").name == "mine"
    put(store, "smollm2-135m", "q4_1", sha256=ALIASES["starter"].sha256)
    assert store.resolve("starter").name == "smollm2-135m"


def test_damaged_models_are_set_apart(store):
    put(store, "good", "f16")
    cut = store.directory(put(store, "cut", "f16"))
    (cut / MANIFEST).write_text('{"name":')
    renamed = store.directory(put(store, "renamed", "f16"))
    renamed.rename(renamed.with_name("other"))
    (store.home.models / "empty" / "f16").mkdir(parents=True)
    (store.home.models / ".DS_Store").write_text("")
    assert [model.name for model in store.list()] == ["good"]
    assert [path.parent.name for path in store.damaged()] == ["cut", "empty", "renamed"]


@pytest.mark.parametrize("path", ["../../../secret", "../../other/f16/model.gguf", "link"])
def test_a_manifest_cannot_point_outside(store, tmp_path, path):
    directory = store.directory(put(store, "evil", "f16"))
    (directory / "link").symlink_to(tmp_path)
    record = json.loads((directory / MANIFEST).read_text())
    record["files"][0]["path"] = path
    (directory / MANIFEST).write_text(json.dumps(record))
    with pytest.raises(InvalidModelError, match="outside"):
        store.file(store.resolve("evil"))


def test_a_missing_file_is_said_and_mended_by_a_pull(store, tiny):
    manifest = pull(str(tiny), store)
    file = store.file(manifest)
    file.unlink()
    assert not store.is_whole(manifest)
    with pytest.raises(InvalidModelError, match="missing") as raised:
        store.file(manifest)
    assert f"localllm pull {tiny}" in raised.value.hint
    assert store.is_whole(pull(str(tiny), store))


def test_a_damaged_manifest_is_replaced_by_a_pull(store, tiny):
    directory = store.directory(pull(str(tiny), store))
    (directory / MANIFEST).write_text("")
    assert store.is_whole(pull(str(tiny), store))
    assert store.damaged() == []


def test_removing(store):
    manifest = put(store, "a", "f16", data=bytes(1000))
    put(store, "a", "q8_0")
    assert store.remove(manifest) == 1000
    assert [str(model.model_name) for model in store.list()] == ["a:q8_0"]
    with pytest.raises(ModelNotFoundError, match="gone already"):
        store.remove(manifest)
    store.remove(store.resolve("a"))
    assert not list(store.home.models.iterdir())
    assert not list(store.home.partial.iterdir())


def test_installing_over_another_model_is_refused(store, tmp_path):
    put(store, "a", "f16")
    work = store.home.partial / "w"
    work.mkdir()
    with pytest.raises(StoreError, match="taken"):
        store.install(work, Manifest("a", "f16", "elsewhere", "gguf", (ModelFile("x", 1, "1" * 64),)))
    assert store.resolve("a").source == "test"


def test_leftovers_of_the_dead_are_cleaned_and_those_of_the_living_kept(store):
    partial = store.home.partial
    names = ["pypi-dead", "hf-resumable", "hf-stale", "pypi-alive", "removed-x"]
    for name in names:
        (partial / name).mkdir()
        (partial / name / "file").write_bytes(b"x")
    month_ago = time.time() - 30 * 24 * 3600
    for path in (partial / "hf-stale" / "file", partial / "hf-stale"):
        os.utime(path, (month_ago, month_ago))
    with FileLock(store.home.locks / "pull-pypi-alive.lock"):
        store.workspace.clean()
    assert sorted(path.name for path in partial.iterdir()) == ["hf-resumable", "pypi-alive"]


def test_keys_are_safe_and_differ(store):
    keys = [store.workspace.key(text) for text in ("hf:a/b", "hf:a/b:c", "/tmp/../x y", "pypi:" + "a" * 500)]
    assert len(set(keys)) == 4
    assert all(Path(key).name == key and len(key) < 100 for key in keys)
    assert store.workspace.can_resume(keys[0])
    assert not store.workspace.can_resume(keys[3])


def test_models_that_come_and_go_while_they_are_listed(store):
    put(store, "stays", "f16")
    ends = threading.Event()

    def come_and_go():
        while not ends.is_set():
            store.discard(store.directory(put(store, "goes", "f16")))

    thread = threading.Thread(target=come_and_go)
    thread.start()
    try:
        for _ in range(1000):
            assert "stays" in {model.name for model in store.list()}
            store.damaged()
    finally:
        ends.set()
        thread.join()


def test_a_lineage_ends_where_a_name_comes_again(store):
    first, second, third = (put(store, name, "f16") for name in ("first", "second", "third"))
    for model, parent in ((first, third), (second, first), (third, second)):
        made = replace(model, parent=Parent(str(parent.model_name), "0" * 64, "quantize"))
        write_manifest(store.directory(model), made)
    assert [model.name for model in store.lineage(store.resolve("first"))] == ["first", "third", "second"]
    gone = replace(first, parent=Parent("gone:f16", "0" * 64, "quantize"))
    assert list(store.lineage(gone)) == [gone]
