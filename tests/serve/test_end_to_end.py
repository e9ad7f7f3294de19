"""The real server with the real starter model, and the official client."""

import os
import signal
import threading
import time

import openai
import psutil
import pytest

from tests.fakes.serving import serving

MODEL = "smollm2-135m"
# openai 3.x leaves its own HTTP client to the garbage collector.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


@pytest.fixture
def server(starter_home):
    """``localllm serve`` with the starter model; its record."""
    with serving(starter_home, MODEL, "--ctx", "4096") as record:
        yield record


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def ask(client, text, **more):
    return client.chat.completions.create(
        model=MODEL, messages=[{"role": "user", "content": text}], temperature=0, **more
    )


def engine_pid(server):
    """The one child that holds the model, once it is there: the server loads it after it has begun to answer."""
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline:
        children = psutil.Process(server.pid).children(recursive=True)
        engines = [child.pid for child in children if "serve.engine.worker" in child.cmdline()]
        if engines:
            assert len(engines) == 1
            return engines[0]
        time.sleep(0.05)
    raise AssertionError("no engine was started")


def test_streamed_and_whole_answers_are_the_same(client):
    whole = ask(client, "What is gravity?", max_tokens=32)
    assert whole.choices[0].message.content.startswith("Gravity")
    assert whole.usage.prompt_tokens == 34
    assert whole.usage.completion_tokens == 32
    assert whole.choices[0].finish_reason == "length"
    text, usage = "", None
    for chunk in ask(client, "What is gravity?", max_tokens=32, stream=True, stream_options={"include_usage": True}):
        if chunk.choices:
            text += chunk.choices[0].delta.content or ""
        usage = chunk.usage or usage
    assert text == whole.choices[0].message.content
    assert usage.completion_tokens == 32
    assert usage.prompt_tokens_details.cached_tokens > 0


def test_eight_clients_at_once(server):
    told, failures = {}, []
    all_started = threading.Barrier(8, timeout=120)

    def one(i):
        try:
            with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0) as client:
                pieces = []
                for chunk in ask(client, f"Tell me about the number {i}.", max_tokens=48, stream=True):
                    if chunk.choices and chunk.choices[0].delta.content:
                        pieces.append(chunk.choices[0].delta.content)
                        if len(pieces) == 1:
                            # Nobody goes on before all eight have their first token: they do run together.
                            all_started.wait()
                told[i] = pieces
        except Exception as error:  # noqa: BLE001 - shown by the assertion below
            failures.append(error)

    threads = [threading.Thread(target=one, args=(i,)) for i in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(180)
    assert not failures
    assert set(told) == set(range(8))
    assert all(len(pieces) > 10 for pieces in told.values())


def test_kill_in_the_middle_then_the_next_request_is_served(server, client):
    ask(client, "Hello.", max_tokens=1)
    first = engine_pid(server)

    def read_until_killed():
        for chunk in ask(client, "Write a very long story.", max_tokens=2000, stream=True):
            if chunk.choices and chunk.choices[0].delta.content:
                os.kill(first, signal.SIGKILL)

    with pytest.raises(openai.APIError, match="signal 9"):
        read_until_killed()
    answer = ask(client, "Are you there?", max_tokens=8)
    assert answer.choices[0].message.content
    assert engine_pid(server) != first


def test_a_kill_before_the_first_token_is_a_503(server, client):
    ask(client, "Hello.", max_tokens=1)
    pid = engine_pid(server)
    os.kill(pid, signal.SIGSTOP)
    killer = threading.Timer(0.5, os.kill, (pid, signal.SIGKILL))
    killer.start()
    with pytest.raises(openai.InternalServerError) as refused:
        ask(client, "Hello?", max_tokens=8)
    killer.join()
    assert refused.value.status_code == 503
    assert ask(client, "Hello?", max_tokens=8).choices[0].message.content


def test_errors_name_what_is_wrong(client):
    with pytest.raises(openai.BadRequestError, match=r"\d{4} tokens.*holds 4096") as refused:
        ask(client, "word " * 6000)
    assert refused.value.code == "context_length_exceeded"
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(model="../../etc/passwd", messages=[{"role": "user", "content": "x"}])
    with pytest.raises(openai.BadRequestError, match="reasoning_effort"):
        ask(client, "x", reasoning_effort="low")


def test_embeddings(client):
    answer = client.embeddings.create(model=MODEL, input=["a cat", "a kitten", "interest rates"])
    assert [item.index for item in answer.data] == [0, 1, 2]
    assert all(abs(sum(x * x for x in item.embedding) - 1) < 1e-4 for item in answer.data)


def test_no_prompt_is_left_on_the_disk(starter_home, server, client):
    ask(client, "xyzzy-canary-plugh", max_tokens=4)
    files = [path for path in starter_home.root.rglob("*") if path.is_file() and path.suffix != ".gguf"]
    assert files
    assert not [path for path in files if b"xyzzy" in path.read_bytes()]
