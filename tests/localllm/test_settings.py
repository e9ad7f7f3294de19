"""Settings: which value wins, and what a person is told about a wrong one."""

import pytest

from localllm.errors import DiskFullError, SettingsError
from localllm.settings import Settings, load_settings, save_setting


@pytest.fixture
def file(tmp_path):
    return tmp_path / "settings.toml"


def test_flag_wins_over_environment_over_file_over_default(file):
    file.write_text('port = 1\nctx = 1\nthreads = 1\nmodel = "from-file"\n')
    environ = {"LOCALLLM_PORT": "2", "LOCALLLM_CTX": "2"}
    settings = load_settings(file, environ, {"port": 3, "threads": None})
    assert (settings.port, settings.ctx, settings.threads, settings.model) == (3, 2, 1, "from-file")
    assert settings.host == "127.0.0.1"


def test_without_a_file_the_defaults_hold(file):
    assert load_settings(file, {}) == Settings()
    assert not file.exists()


def test_other_variables_with_the_prefix_are_not_ours(file):
    environ = {"LOCALLLM_HOME": "/somewhere", "LOCALLLM_API_KEY": "secret", "LOCALLLM_WHATEVER": "1"}
    assert load_settings(file, environ) == Settings()


@pytest.mark.parametrize(
    ("text", "environ", "flags", "where", "said"),
    [
        ("prot = 80\n", {}, {}, "settings.toml", "There are: ctx,"),
        ("port = 70000\n", {}, {}, "settings.toml", "It was 70000."),
        ('temperature = "warm"\n', {}, {}, "settings.toml", "It was 'warm'."),
        ("[port]\nx = 1\n", {}, {}, "settings.toml", "It was {'x': 1}."),
        ("", {"LOCALLLM_PORT": "http"}, {}, "environment variable LOCALLLM_PORT", "It was 'http'."),
        ("", {"LOCALLLM_LOG_LEVEL": "loud"}, {}, "environment variable LOCALLLM_LOG_LEVEL", "It was 'loud'."),
        ("", {"LOCALLLM_MAX_TOKENS": "5"}, {"max_tokens": -1}, "--max-tokens", "It was -1."),
    ],
)
def test_a_wrong_value_is_named_with_where_it_came_from(file, text, environ, flags, where, said):
    file.write_text(text)
    with pytest.raises(SettingsError) as caught:
        load_settings(file, environ, flags)
    assert where in caught.value.message
    assert said in caught.value.hint
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("raw", [b"port = ", b"\xff\xfe", b"port = 1\nport = 2\n"])
def test_a_damaged_file_is_named_and_never_written_over(file, raw):
    file.write_bytes(raw)
    for act in (lambda: load_settings(file, {}), lambda: save_setting(file, "theme", "localllm-light")):
        with pytest.raises(SettingsError, match="is not valid TOML") as caught:
            act()
        assert str(file) in caught.value.message
    assert file.read_bytes() == raw


def test_a_file_that_cannot_be_read_is_named(file):
    file.mkdir()
    with pytest.raises(SettingsError, match="cannot be read"):
        load_settings(file, {})


def test_saving_keeps_the_comments_and_the_order(file):
    file.write_text('# mine\nport = 8080  # why not\ntheme = "localllm-dark"\nctx = 512\n')
    save_setting(file, "theme", "localllm-light")
    assert file.read_text() == '# mine\nport = 8080  # why not\ntheme = "localllm-light"\nctx = 512\n'
    assert load_settings(file, {}).theme == "localllm-light"


def test_saving_makes_the_file_private(file):
    save_setting(file, "ctx", 2048)
    assert load_settings(file, {}).ctx == 2048
    assert file.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(("name", "value"), [("port", -1), ("log_level", "loud"), ("prot", 1)])
def test_a_wrong_value_is_not_saved(file, name, value):
    file.write_text("ctx = 512\n")
    with pytest.raises(SettingsError):
        save_setting(file, name, value)
    assert file.read_text() == "ctx = 512\n"


def test_a_directory_that_cannot_be_written_is_an_error_for_a_person(file, monkeypatch):
    def refuse(**kwargs):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("localllm.files.tempfile.mkstemp", refuse)
    with pytest.raises(SettingsError, match="cannot be written: Permission denied"):
        save_setting(file, "ctx", 1)


def test_a_full_disk_leaves_the_settings_as_they_were(file, monkeypatch):
    def full(descriptor):
        raise OSError(28, "No space left on device")

    file.write_text("ctx = 512\n")
    monkeypatch.setattr("localllm.files.os.fsync", full)
    with pytest.raises(DiskFullError):
        save_setting(file, "ctx", 1)
    assert file.read_text() == "ctx = 512\n"
    assert list(file.parent.iterdir()) == [file]


def test_the_app_knows_the_default_theme():
    from app.tui.themes import DARK

    assert Settings().theme == DARK.name
