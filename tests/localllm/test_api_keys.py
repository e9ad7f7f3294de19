"""The file of the API keys."""

import json
import stat
import threading

import pytest

from localllm.api_keys import DEFAULT_SCOPES, KeyStore, digest
from localllm.errors import SettingsError, UsageError


def test_a_key_is_kept_as_its_digest_only(home):
    store = KeyStore(home)
    key = store.add("notebook")
    assert len(key) >= 43  # 256 bits in base 64
    assert key not in home.keys_file.read_text()
    [kept] = store.list()
    assert (kept.name, kept.scopes, kept.sha256) == ("notebook", DEFAULT_SCOPES, digest(key).hex())
    assert stat.S_IMODE(home.keys_file.stat().st_mode) == 0o600
    assert store.add("other") != key


def test_scopes():
    from localllm.api_keys import ApiKey

    key = ApiKey("a", ("embed",), "", "")
    assert key.allows("embed")
    assert not key.allows("chat")
    assert ApiKey("a", ("admin",), "", "").allows("chat")


def test_removing(home):
    store = KeyStore(home)
    store.add("one")
    store.add("two", ("metrics",))
    assert store.remove("one") == 1
    assert [key.name for key in store.list()] == ["two"]
    with pytest.raises(UsageError, match="no key 'one'"):
        store.remove("one")


@pytest.mark.parametrize("name", ["", "A", "a b", "../x", "a" * 65, "-a"])
def test_names_that_are_none(home, name):
    with pytest.raises(UsageError):
        KeyStore(home).add(name)


def test_what_is_refused(home):
    store = KeyStore(home)
    store.add("one")
    with pytest.raises(UsageError, match="already"):
        store.add("one")
    with pytest.raises(UsageError, match="'nonsense'"):
        store.add("two", ("chat", "nonsense"))
    assert len(store.list()) == 1


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "{}",
        '{"keys": [1]}',
        '{"keys": [{"name": "a"}]}',
        '{"keys": [{"name": "a", "scopes": ["chat"], "sha256": "00", "created": ""}]}',
        '{"keys": [{"name": "a", "scopes": ["root"], "sha256": "%s", "created": ""}]}' % ("0" * 64),
        '{"keys": [{"name": 1, "scopes": ["chat"], "sha256": "%s", "created": ""}]}' % ("0" * 64),
    ],
)
def test_a_damaged_file(home, text):
    home.keys_file.write_text(text)
    with pytest.raises(SettingsError, match=r"keys\.json"):
        KeyStore(home).list()
    with pytest.raises(SettingsError):
        KeyStore(home).add("one")
    assert home.keys_file.read_text() == text


def test_the_stamp_differs_after_every_change(home):
    store = KeyStore(home)
    stamps = [store.stamp()]
    for change in (lambda: store.add("a"), lambda: store.add("b"), lambda: store.remove("a")):
        change()
        stamps.append(store.stamp())
    assert len(set(stamps)) == 4


def test_two_at_once_lose_nothing(home):
    threads = [threading.Thread(target=KeyStore(home).add, args=(f"key-{i}",)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(json.loads(home.keys_file.read_text())["keys"]) == 8
