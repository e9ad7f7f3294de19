"""The real server with a directory of safetensors from the store, and the official client."""

import contextlib
import signal
import subprocess
import sys
import time

import openai
import psutil
import pytest

from localllm.models.pull import pull
from localllm.models.store import ModelStore
from serve.discovery import running_server
from tests.fakes.mlx_models import make_model

# openai 3.x leaves its own HTTP client to the garbage collector.
pytestmark = pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")


@pytest.fixture
def server(home, tmp_path):
    """``localllm serve`` as a person starts it, with the tiny model in its store; yields its record."""
    pull(str(make_model(tmp_path / "tuned")), ModelStore(home))
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app", "serve", "tuned", "--port", "0"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    deadline = time.monotonic() + 120
    while (record := running_server(home)) is None:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    yield record
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


@pytest.fixture
def client(server):
    with openai.OpenAI(base_url=f"{server.base_url}/v1", api_key="none", max_retries=0, timeout=120) as client:
        yield client


def ask(client, text, **more):
    more.setdefault("temperature", 0)
    messages = [{"role": "user", "content": text}]
    return client.chat.completions.create(model="tuned", messages=messages, max_tokens=24, **more)


def test_it_is_served_like_any_other(client, server):
    assert [model.id for model in client.models.list()] == ["tuned:f32"]

    whole = ask(client, "the cat")
    text = whole.choices[0].message.content
    assert text
    assert whole.usage.completion_tokens <= 24
    streamed, usage = "", None
    for chunk in ask(client, "the cat", stream=True, stream_options={"include_usage": True}):
        streamed += (chunk.choices[0].delta.content or "") if chunk.choices else ""
        usage = chunk.usage or usage
    assert streamed == text
    assert usage.prompt_tokens == whole.usage.prompt_tokens
    assert usage.prompt_tokens_details.cached_tokens > 0

    stopped = ask(client, "the cat", stop=text[2:4])
    assert stopped.choices[0].message.content == text[: text.index(text[2:4])]
    assert stopped.choices[0].finish_reason == "stop"

    several = ask(client, "one", n=3, temperature=1.5, seed=1, logprobs=True, top_logprobs=2)
    assert len({choice.message.content for choice in several.choices}) == 3
    assert len(several.choices[0].logprobs.content[0].top_logprobs) == 2

    scored = client.completions.create(model="tuned", prompt="one two", max_tokens=0, echo=True, logprobs=1)
    assert scored.choices[0].text.endswith("one two")

    with pytest.raises(openai.BadRequestError, match="embeddings"):
        client.embeddings.create(model="tuned", input="x")
    with pytest.raises(openai.BadRequestError, match="512"):
        ask(client, "the cat sat on the mat " * 200)


def test_a_crash_ends_what_ran_and_nothing_else(client, server):
    text = ask(client, "the cat").choices[0].message.content
    children = psutil.Process(server.pid).children(recursive=True)
    [engine] = [child for child in children if "serve.engine.worker" in child.cmdline()]
    engine.send_signal(signal.SIGKILL)
    with contextlib.suppress(openai.InternalServerError):  # the server may not have noticed yet
        ask(client, "the cat")
    assert ask(client, "the cat").choices[0].message.content == text
