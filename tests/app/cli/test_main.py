import io
import logging
import signal
import subprocess
import sys
import types

import pytest

from app.cli import main as frame
from app.cli.main import COMMANDS, main
from localllm import __version__
from localllm.errors import MemoryFitError
from localllm.paths import Home


@pytest.fixture
def command(monkeypatch):
    """Puts a command of the test's own in the place of `pull`; returns a setter for what it does."""

    def install(run, configure=lambda parser: None):
        module = types.SimpleNamespace(configure=configure, run=run)
        monkeypatch.setattr(frame, "import_module", lambda name: module)

    return install


def test_help_lists_every_command_and_imports_none(capsys):
    with pytest.raises(SystemExit) as ended:
        main(["--help"])
    out = capsys.readouterr().out
    assert ended.value.code == 0
    for entry in COMMANDS:
        assert f"  {entry.name}" in out
        assert entry.summary in out


def test_version(capsys):
    with pytest.raises(SystemExit):
        main(["--version"])
    assert capsys.readouterr().out == f"localllm {__version__}\n"


def test_mistyped_command_gets_a_suggestion(capsys):
    assert main(["chta"]) == 2
    assert "Did you mean `localllm chat`?" in capsys.readouterr().err


def test_unknown_command_points_to_help(capsys):
    assert main(["zzz"]) == 2
    assert "`localllm --help`" in capsys.readouterr().err


@pytest.mark.parametrize("words", [["--zork"], ["--home"]])
def test_wrong_option_is_wrong_usage(words, capsys):
    assert main(words) == 2
    assert "See `localllm --help`." in capsys.readouterr().err


def test_alone_without_a_terminal_says_so(capsys, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO())
    assert main([]) == 2
    assert "needs a terminal" in capsys.readouterr().err


def test_home_comes_from_the_option_before_or_after_the_command(command, tmp_path):
    seen = []
    command(lambda args, home: seen.append(home) or 0)
    assert main(["--home", str(tmp_path / "a"), "pull"]) == 0
    assert main(["pull", "--home", str(tmp_path / "b")]) == 0
    assert main(["pull"]) == 0
    assert seen == [Home(tmp_path / "a"), Home(tmp_path / "b"), Home.resolve()]
    assert (tmp_path / "b" / "logs").is_dir()


def test_arguments_after_the_command_are_the_commands_own(command):
    seen = []
    command(lambda args, home: seen.append(args.source) or 0, lambda parser: parser.add_argument("source"))
    assert main(["pull", "starter"]) == 0
    assert seen == ["starter"]


def test_missing_argument_names_the_command(command, capsys):
    command(lambda args, home: 0, lambda parser: parser.add_argument("source"))
    assert main(["pull"]) == 2
    assert "See `localllm pull --help`." in capsys.readouterr().err


def test_help_word_shows_the_commands_help(command, capsys):
    command(lambda args, home: 0, lambda parser: parser.add_argument("source", help="where from"))
    with pytest.raises(SystemExit) as ended:
        main(["help", "pull"])
    assert ended.value.code == 0
    assert "where from" in capsys.readouterr().out


def test_a_persons_mistake_shows_message_and_hint_without_control_characters(command, capsys):
    def run(args, home):
        raise MemoryFitError("Too \x1b[31mbig.", "Take a smaller one.")

    command(run)
    assert main(["pull"]) == 1
    assert capsys.readouterr().err == "localllm: Too ␛[31mbig.\n  Take a smaller one.\n"


def test_a_bug_shows_a_traceback_and_where_the_logs_are(command, capsys, tmp_path):
    command(lambda args, home: {}["missing"])
    assert main(["pull"]) == 1
    err = capsys.readouterr().err
    assert "Traceback" in err
    assert "KeyError: 'missing'" in err
    assert str(tmp_path / "home" / "logs") in err


def test_logging_is_left_as_it_was(command, tmp_path):
    before = logging.getLogger().handlers[:]
    command(lambda args, home: logging.getLogger("x").warning("noted") or 0)
    assert main(["pull"]) == 0
    assert logging.getLogger().handlers == before
    assert "noted" in (tmp_path / "home" / "logs" / "cli.log").read_text()


def test_ctrl_c_ends_with_130(command):
    def run(args, home):
        raise KeyboardInterrupt

    command(run)
    assert main(["pull"]) == 130


def test_a_damaged_settings_file_does_not_keep_other_commands_from_running(command, home):
    home.settings_file.write_text("model = [")
    command(lambda args, home: 0)
    assert main(["pull"]) == 0


def test_unwritable_home_is_a_message(command, capsys, tmp_path):
    (tmp_path / "file").write_text("")
    command(lambda args, home: 0)
    assert main(["--home", str(tmp_path / "file" / "x"), "pull"]) == 2
    assert "LOCALLLM_HOME" in capsys.readouterr().err


def test_a_reader_that_leaves_early_is_no_traceback():
    script = (
        "import sys, types; from app.cli import main as m\n"
        "def run(args, home):\n    [print(n) for n in range(200000)]; return 0\n"
        "m.import_module = lambda name: types.SimpleNamespace(configure=lambda p: None, run=run)\n"
        "sys.exit(m.main(['pull']))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL
    )
    assert child.stdout.readline() == b"0\n"
    child.stdout.close()
    err = child.stderr.read()
    child.stderr.close()
    assert child.wait(30) == 1
    assert err == b""


def test_sigint_ends_a_running_command_quickly():
    script = (
        "import sys, time, types; from app.cli import main as m\n"
        "def run(args, home):\n    print('up', flush=True); time.sleep(60); return 0\n"
        "m.import_module = lambda name: types.SimpleNamespace(configure=lambda p: None, run=run)\n"
        "sys.exit(m.main(['pull']))"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"up\n"
        child.send_signal(signal.SIGINT)
        assert child.wait(10) == 130
        assert b"Traceback" not in child.stderr.read()
