"""The app in a real terminal (tmux), driven by keys, with a real server and the real model."""

import asyncio
import contextlib
import re
import shutil
import subprocess
import sys
import time
import uuid

import psutil
import pytest

from localllm.conversations import ConversationStore
from serve.discovery import running_server, stop_managed

pytestmark = [pytest.mark.model, pytest.mark.slow]
SECONDS = 120  # far more than anything takes: a busy machine is slow, not wrong
FIRST, SECOND, EDITED = "What is gravity?", "Who was Newton?", "What is light?"


class Terminal:
    """A terminal of 80x24 that runs one command."""

    def __init__(self, *command):
        if shutil.which("tmux") is None:
            pytest.fail("This test needs tmux: install it, as .ci/run does.", pytrace=False)
        # A tmux server of its own: the person's sessions and settings play no part.
        self._tmux = ("tmux", "-u", "-L", f"localllm-{uuid.uuid4().hex[:12]}", "-f", "/dev/null")
        # The shell stays, so that the terminal can be looked at when the command has ended.
        shell = ("sh", "-c", '"$@"; echo "ended with $?"; exec sleep 1000', "sh")
        self._run("new-session", "-d", "-x", "80", "-y", "24", *shell, *command)

    def press(self, *keys):
        """Press keys by tmux's names: ``Enter``, ``M-Up``, ``C-q``, ``e``."""
        self._run("send-keys", *keys)

    def type(self, text):
        self._run("send-keys", "-l", text)

    def screen(self):
        return self._run("capture-pane", "-p")

    def wait_for(self, *wanted):
        """Wait until every one of the regular expressions is found on the screen; return the screen."""

        def found():
            screen = self.screen()
            return screen if all(re.search(pattern, screen) for pattern in wanted) else None

        return wait_until(found, lambda: f"{wanted} never came on the screen:\n{self.screen()}")

    def close(self):
        """Close the terminal, as a person closes a window: what runs in it is hung up on."""
        subprocess.run([*self._tmux, "kill-server"], capture_output=True, check=False)

    def _run(self, *words):
        return subprocess.run([*self._tmux, *words], capture_output=True, text=True, check=True, timeout=30).stdout


def wait_until(condition, complaint):
    end = time.monotonic() + SECONDS
    while time.monotonic() < end:
        if found := condition():
            return found
        time.sleep(0.1)
    raise AssertionError(complaint())


@pytest.fixture
def open_app(starter_home):
    """Opens the app in a new terminal; everything that was started is stopped after the test."""
    starter_home.settings_file.write_text("temperature = 0\nmax_tokens = 48\n")
    terminals = []

    def opened():
        terminals.append(Terminal(sys.executable, "-P", "-m", "app", "--home", str(starter_home.root)))
        return terminals[-1]

    yield opened
    for terminal in terminals:
        terminal.close()
    record = running_server(starter_home)
    if record is not None:
        asyncio.run(stop_managed(starter_home, record))


@pytest.fixture
def branch(starter_home):
    """Role, text and status of the messages of the one conversation, on the branch that is shown."""
    store = ConversationStore(starter_home.database)

    def read():
        path = store.active_path(store.list()[0].id) if store.list() else ()
        return [(message.role, message.content, message.status) for message in path]

    yield read
    store.close()


def ask(terminal, branch, question, n_messages):
    """Send a question; wait until its answer is whole, on the disk and on the screen; return the answer."""
    terminal.type(question)
    terminal.wait_for(re.escape(question))
    terminal.press("Enter")

    def answered():
        path = branch()
        return len(path) == n_messages and path[-2][:2] == ("user", question) and path[-1][2] == "done"

    wait_until(answered, lambda: f"{question!r} was not answered: {branch()}\n{terminal.screen()}")
    answer = branch()[-1][1]
    terminal.wait_for(words(answer), r"tok/s · \d+/\d+ ")
    return answer


def words(text):
    """A pattern for the last words of a text, which a line may end between."""
    return r"[\s▌]+".join(re.escape(word) for word in text.split()[-4:])


def test_two_turns_an_edit_and_both_branches_after_a_restart(open_app, branch):
    app = open_app()
    app.wait_for(r"Write a message", "smollm2-135m:q4_1")
    first = ask(app, branch, FIRST, 2)
    second = ask(app, branch, SECOND, 4)

    app.press("M-Up")
    app.wait_for("e Edit")
    app.press("g")
    app.wait_for(rf"▌ You\s+▌ {re.escape(FIRST)}")
    app.press("e")
    app.wait_for("Editing: ", rf"│ {re.escape(FIRST)}")
    app.press("C-u")
    app.wait_for("Editing: ", "│ Write a message")
    edited = ask(app, branch, EDITED, 2)
    app.wait_for(r"You\s+‹ 2/2 ›")  # noqa: RUF001  the marks on the screen
    assert edited != first
    app.press("C-q")
    app.wait_for("ended with 0")

    again = open_app()
    again.wait_for(rf"You\s+‹ 2/2 ›\s+{re.escape(EDITED)}", words(edited))  # noqa: RUF001  as above
    again.press("M-Up")
    again.wait_for("e Edit")
    again.press("g")
    again.wait_for(r"▌ You\s+‹ 2/2 ›")  # noqa: RUF001  as above
    again.press("Left")
    wait_until(lambda: len(branch()) == 4, lambda: f"the other branch did not come back:\n{again.screen()}")
    again.wait_for(rf"‹ 1/2 ›\s+▌ {re.escape(FIRST)}")  # noqa: RUF001  as above
    again.press("G")
    again.wait_for(words(second))
    assert [text for _, text, _ in branch()] == [FIRST, first, SECOND, second]
    again.press("C-q")
    again.wait_for("ended with 0")


def apps(home):
    """The processes of the terminal app on ``home``."""
    wanted = ["-m", "app", "--home", str(home.root)]
    found = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            command = process.cmdline()
            if command[-len(wanted) :] == wanted and "python" in command[0]:
                found.append(process)
    return found


def test_a_terminal_that_is_closed_in_the_middle_of_an_answer_keeps_what_was_seen(open_app, branch, starter_home):
    starter_home.settings_file.write_text("temperature = 0\n")
    app = open_app()
    app.wait_for(r"Write a message", "smollm2-135m:q4_1")
    app.type("Write a long story about a king.")
    app.press("Enter")
    screen = app.wait_for(r"\d\d tokens · \d+ tok/s · Esc stops")
    app.close()
    wait_until(lambda: branch()[-1][2] != "streaming", lambda: f"it goes on: {branch()}")
    _, text, status = branch()[-1]
    assert status == "cancelled"
    seen = re.search(r"smollm2-135m:q4_1\s+(.*?)\s*\n\s*\n", screen, re.DOTALL)[1]
    assert " ".join(text.split()).startswith(" ".join(seen.split()))
    wait_until(lambda: not apps(starter_home), lambda: f"it lives on: {apps(starter_home)}")
    again = open_app()
    again.wait_for("Stopped", words(text))
