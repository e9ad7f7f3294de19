"""The privacy report says what is so: who can read the home, what listens, what leaves."""

import os
import socket
from pathlib import Path

import pytest

from localllm.checkup.privacy import check_files, check_network, check_server, is_loopback, listening
from localllm.paths import Home
from localllm.settings import Settings
from localllm.snapshots import ensure_directory, snapshot_directory


def levels(findings):
    return [finding.level for finding in findings]


def test_a_closed_home_is_fine(home):
    (found,) = check_files(home)
    assert found.level == "ok"
    assert "mode 0700" in found.text


def test_an_open_home_is_a_problem(home):
    home.root.chmod(0o755)
    (found,) = check_files(home)
    assert found.level == "problem"
    assert "chmod -R go=" in found.hint


@pytest.mark.parametrize(("root_mode", "expected"), [(0o700, ["ok", "warn"]), (0o711, ["problem", "problem"])])
def test_a_readable_file_in_the_home(home, root_mode, expected):
    home.database.touch()
    home.database.chmod(0o644)
    home.root.chmod(root_mode)
    found = check_files(home)
    assert levels(found) == expected
    assert "localllm.db" in found[1].text


def test_the_place_of_snapshots_is_named(home):
    directory = snapshot_directory(home, "ab" * 32)
    ensure_directory(directory)
    (directory / "x.kv").write_bytes(bytes(2_000_000))
    (directory / "x.kv").chmod(0o600)
    found = check_files(home)
    assert levels(found) == ["ok", "ok"]
    assert str(home.snapshots) in found[1].text


def test_links_in_the_home_are_not_judged(home, tmp_path):
    (tmp_path / "outside").touch(mode=0o644)
    (home.models / "link").symlink_to(tmp_path / "outside")
    (home.models / "nowhere").symlink_to(tmp_path / "gone")
    assert levels(check_files(home)) == ["ok"]


def test_another_users_home_is_a_problem(home, monkeypatch):
    monkeypatch.setattr(os, "getuid", lambda: home.root.stat().st_uid + 1)
    assert levels(check_files(home)) == ["problem"]


@pytest.mark.parametrize(("folder", "service"), [("Dropbox", "Dropbox"), ("Mobile Documents", "iCloud Drive")])
def test_a_synchronised_home_is_a_problem(tmp_path, folder, service):
    found = check_files(Home(tmp_path / folder / "localllm").ensure())
    assert levels(found) == ["ok", "problem"]
    assert service in found[1].text


def test_no_server():
    assert check_server(None)[0].text == "No server is running: nothing listens"


@pytest.mark.parametrize(
    ("addresses", "level", "words"),
    [
        (("127.0.0.1:11435", "::1:11435"), "ok", "listens only on 127.0.0.1:11435, ::1:11435"),
        (("127.0.0.1:1", "0.0.0.0:11435"), "warn", "listens on 0.0.0.0:11435"),
        ((":::11435",), "warn", "listens on :::11435"),
        ((), "ok", "does not listen yet"),
        (None, "warn", "does not tell"),
    ],
)
def test_a_running_server(addresses, level, words):
    (found,) = check_server(4711, lambda pid: addresses)
    assert found.level == level
    assert words in found.text


def test_what_listens_is_asked_of_the_system():
    with socket.create_server(("127.0.0.1", 0)) as server:
        assert f"127.0.0.1:{server.getsockname()[1]}" in (listening(os.getpid()) or ())
    assert listening(2**22 + 1) == ()  # past the largest process id


def test_what_leaves_the_machine():
    found = check_network({}, Settings())
    assert levels(found) == ["ok", "ok"]
    assert "No telemetry" in found[0].text


@pytest.mark.parametrize("name", ["HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"])
def test_the_switch_that_keeps_the_hub_off_is_named(name):
    assert f"switched off ({name})" in " ".join(finding.text for finding in check_network({name: "1"}, None))


def test_variables_that_change_what_pull_does():
    environ = {
        "HF_HUB_OFFLINE": "1",
        "HF_ENDPOINT": "http://hub\x1b[0m",
        "HF_TOKEN": "hf_secret",
    }
    found = check_network(environ, None)
    text = " ".join(finding.text for finding in found)
    assert "switched off" in text
    assert "http://hub␛[0m" in text
    assert "hf_secret" not in text


def test_a_host_that_others_reach_is_a_warning():
    found = check_network({}, Settings(host="0.0.0.0"))
    assert found[-1].level == "warn"
    assert "0.0.0.0" in found[-1].text


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "[::1]", "localhost"])
def test_loopback(host):
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "example.org", ""])
def test_not_loopback(host):
    assert not is_loopback(host)


def test_a_home_with_a_space_is_quoted_in_the_hint(tmp_path: Path):
    home = Home(tmp_path / "my home").ensure()
    home.root.chmod(0o755)
    assert f"'{home.root}'" in check_files(home)[0].hint
