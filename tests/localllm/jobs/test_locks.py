import subprocess
import sys

from localllm.jobs.locks import is_held, take
from tests.fakes.jobs import wait_until


def test_a_lock_is_one_owners(tmp_path):
    path = tmp_path / "lock"
    assert not is_held(path)
    held = take(path)
    assert is_held(path)
    assert take(path) is None
    held.close()
    held.close()
    assert not is_held(path)
    again = take(path)
    again.close()


def test_looking_takes_nothing(tmp_path):
    """A shared look beside another one, as two windows that list jobs at once."""
    import fcntl

    path = tmp_path / "lock"
    take(path).close()
    with path.open() as other:
        fcntl.flock(other, fcntl.LOCK_SH)
        assert not is_held(path)


def test_a_program_that_is_started_does_not_inherit_it(tmp_path):
    held = take(tmp_path / "lock")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, close_fds=False)
    held.close()
    wait_until(lambda: not is_held(tmp_path / "lock"))  # the system closes it while the program begins
    child.communicate(b"\n")


def test_a_program_that_it_is_handed_to_keeps_it(tmp_path):
    held = take(tmp_path / "lock")
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, pass_fds=(held.descriptor,))
    held.close()
    assert is_held(tmp_path / "lock")
    child.communicate(b"\n")
    assert not is_held(tmp_path / "lock")


def test_a_note_says_who_holds_it(tmp_path):
    held = take(tmp_path / "lock")
    held.note("a long note about the first")
    held.note("short ü")
    assert (tmp_path / "lock").read_text(encoding="utf-8") == "short ü"
    held.close()
