"""``localllm keys``."""

import json

from app.cli.main import main
from localllm.api_keys import KeyStore


def run(capsys, *arguments: str) -> tuple[int, str, str]:
    code = main(["keys", *arguments])
    out, err = capsys.readouterr()
    return code, out, err


def test_add_shows_the_key_once(home, capsys):
    code, out, _ = run(capsys, "add", "notebook")
    key = out.strip()
    assert code == 0
    assert key.startswith("localllm-")
    code, out, _ = run(capsys, "ls")
    assert code == 0
    assert out.splitlines()[1].split()[:4] == ["notebook", "chat,", "embed,", "models"]
    assert key not in out


def test_scopes_and_json(home, capsys):
    run(capsys, "add", "watcher", "--scope", "metrics", "--scope", "models")
    _, out, _ = run(capsys, "--json")
    [record] = json.loads(out)
    assert (record["name"], record["scopes"]) == ("watcher", ["models", "metrics"])
    assert set(record) == {"name", "scopes", "created"}


def test_rm_says_when_none_is_left(home, capsys):
    run(capsys, "add", "one")
    code, out, err = run(capsys, "rm", "one")
    assert (code, out) == (0, "one  removed\n")
    assert "No key is left" in err
    assert KeyStore(home).list() == []


def test_mistakes(home, capsys):
    assert run(capsys, "rm", "one")[0] == 2
    assert run(capsys, "add", "one", "--scope", "root")[0] == 2
    assert run(capsys, "add", "NO")[0] == 2
    code, out, err = run(capsys, "ls")
    assert (code, out) == (0, "")
    assert "localllm keys add" in err
