"""`localllm chat` as a person runs it: processes of its own, a server that it starts, the real model."""

import asyncio
import json
import subprocess
import sys

import pytest

from serve.discovery import running_server, stop_managed
from tests.fakes.gguf_files import write_tiny_lora

pytestmark = [pytest.mark.model, pytest.mark.slow]
QUESTION = "What is gravity?"


@pytest.fixture
def localllm(starter_home):
    """Runs the program to its end; the server that it started is stopped after the test."""

    def run(*words, stdin=""):
        return subprocess.run(
            [sys.executable, "-m", "app", "--home", str(starter_home.root), *words],
            input=stdin,
            capture_output=True,
            text=True,
            timeout=180,
            check=False,
        )

    yield run
    record = running_server(starter_home)
    if record is not None:
        asyncio.run(stop_managed(starter_home, record))


def test_a_model_with_an_adapter_answers_differently(localllm, starter_path, tmp_path):
    lora = write_tiny_lora(tmp_path / "odd.gguf", starter_path, size=0.6)
    assert localllm("pull", str(lora)).returncode == 0
    ask = ("--temperature", "0", "--max-tokens", "8", "--json")
    plain, odd = (localllm("chat", name, QUESTION, *ask) for name in ("starter", "starter+odd"))
    assert plain.returncode == odd.returncode == 0, odd.stderr
    assert json.loads(odd.stdout)["model"] == "smollm2-135m:q4_1+odd"
    assert json.loads(odd.stdout)["text"] != json.loads(plain.stdout)["text"]
    wrong = localllm("chat", "starter+od", QUESTION)
    assert wrong.returncode == 1
    assert "Did you mean odd?" in wrong.stderr


def test_one_answer_from_arguments_and_the_same_from_standard_input(localllm):
    greedy = ("--temperature", "0", "--max-tokens", "24")
    plain = localllm("chat", "smollm2-135m", QUESTION, *greedy, "--stats")
    assert plain.returncode == 0, plain.stderr
    assert "gravity" in plain.stdout.lower()
    assert "tok/s" in plain.stderr
    as_json = localllm("chat", *greedy, "--json", stdin=QUESTION)
    assert as_json.returncode == 0, as_json.stderr
    record = json.loads(as_json.stdout)
    assert record["text"].strip() == plain.stdout.strip()
    assert record["model"] == "smollm2-135m:q4_1"
    assert record["usage"]["completion_tokens"] == 24
    assert as_json.stderr == ""


def test_a_model_that_is_not_here_is_a_message_with_a_hint(localllm):
    ended = localllm("chat", "smolm2-135m", QUESTION)
    assert ended.returncode == 1
    assert ended.stdout == ""
    assert ended.stderr.startswith("localllm: ")
    assert "Traceback" not in ended.stderr
