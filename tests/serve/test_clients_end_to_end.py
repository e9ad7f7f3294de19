"""The official clients of three APIs, unmodified, against the real server with the real starter model."""

import json
import os
import signal
import subprocess
import sys
import time

import anthropic
import ollama
import openai
import pytest

from serve.discovery import running_server
from serve.toolcalls.grammar import MAX_CALLS

MODEL = "smollm2-135m"
COUNT = [{"role": "user", "content": "Write the numbers from 1 to 9 with commas."}]
# The clients leave their own HTTP clients to the garbage collector.
pytestmark = [pytest.mark.model, pytest.mark.filterwarnings("ignore:unclosed:ResourceWarning")]


@pytest.fixture
def url(starter_home):
    """``localllm serve`` as a person starts it; yields its address."""
    process = subprocess.Popen(
        [sys.executable, "-P", "-m", "app", "serve", MODEL, "--port", "0", "--ctx", "2048"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "LOCALLLM_API_KEY": "a-key"},
    )
    deadline = time.monotonic() + 120
    while (record := running_server(starter_home)) is None:
        assert process.poll() is None, "the server ended"
        assert time.monotonic() < deadline, "the server did not start"
        time.sleep(0.05)
    yield record.base_url
    process.send_signal(signal.SIGTERM)
    assert process.wait(30) == 0


def test_every_api_gives_the_same_answer(url):
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="a-key", max_retries=0, timeout=120) as gpt,
        anthropic.Anthropic(base_url=url, api_key="a-key", max_retries=0, timeout=120) as claude,
        ollama.Client(url, headers={"authorization": "Bearer a-key"}, timeout=120) as llama,
    ):
        chat = gpt.chat.completions.create(model=MODEL, messages=COUNT, max_tokens=12, temperature=0)
        text = chat.choices[0].message.content
        assert text.startswith("1, 2, 3")
        response = gpt.responses.create(model=MODEL, input=COUNT, max_output_tokens=12, temperature=0)
        assert response.output_text == text
        ask = {"model": MODEL, "messages": COUNT, "max_tokens": 12, "extra_body": {"temperature": 0}}
        assert claude.messages.create(**ask).content[0].text == text
        with claude.messages.stream(**ask) as stream:
            assert "".join(stream.text_stream) == text
        options = {"temperature": 0, "num_predict": 12}
        assert llama.chat(MODEL, COUNT, options=options).message.content == text
        parts = list(llama.generate(MODEL, COUNT[0]["content"], options=options, stream=True))
        assert "".join(part.response for part in parts) == text
        assert parts[-1].prompt_eval_count == chat.usage.prompt_tokens

        counted = claude.messages.count_tokens(model=MODEL, messages=COUNT).input_tokens
        assert counted == chat.usage.prompt_tokens
        stopped = claude.messages.create(**ask, stop_sequences=["4"])
        assert (stopped.stop_reason, stopped.stop_sequence) == ("stop_sequence", "4")
        assert stopped.content[0].text == text[: text.index("4")]
        assert [model.model for model in llama.ps().models] == [f"{MODEL}:q4_1"]
        assert len(llama.embed(MODEL, ["a", "b"]).embeddings) == 2


def test_every_api_keeps_to_a_schema(url):
    schema = {
        "type": "object",
        "properties": {"first": {"const": 1}, "last": {"enum": [9]}},
        "required": ["first", "last"],
        "additionalProperties": False,
    }
    named = {"type": "json_schema", "name": "ends", "schema": schema}
    with (
        openai.OpenAI(base_url=f"{url}/v1", api_key="a-key", max_retries=0, timeout=120) as gpt,
        anthropic.Anthropic(base_url=url, api_key="a-key", max_retries=0, timeout=120) as claude,
        ollama.Client(url, headers={"authorization": "Bearer a-key"}, timeout=120) as llama,
    ):
        config = {"format": {"type": "json_schema", "schema": schema}}
        answers = [
            gpt.responses.create(model=MODEL, input=COUNT, text={"format": named}).output_text,
            claude.messages.create(model=MODEL, messages=COUNT, max_tokens=99, output_config=config).content[0].text,
            llama.chat(MODEL, COUNT, format=schema).message.content,
            llama.generate(MODEL, COUNT[0]["content"], format=schema).response,
        ]
    assert [json.loads(answer) for answer in answers] == [{"first": 1, "last": 9}] * 4


def test_a_forced_call(url):
    schema = {"type": "object", "properties": {"day": {"enum": ["Monday"]}}, "required": ["day"]}
    tool = {"name": "set_day", "description": "Set the day.", "input_schema": schema}
    # Room for as many calls as an answer may have: a small model, once it calls, goes on calling.
    room = 64 * MAX_CALLS
    asked = {"model": MODEL, "messages": COUNT, "max_tokens": room, "tools": [tool], "tool_choice": {"type": "any"}}
    with anthropic.Anthropic(base_url=url, api_key="a-key", max_retries=0, timeout=120) as claude:
        message = claude.messages.create(**asked)
        with claude.messages.stream(**asked) as stream:
            streamed = stream.get_final_message()
    for answer in (message, streamed):
        assert answer.stop_reason == "tool_use"
        assert (answer.content[-1].name, answer.content[-1].input) == ("set_day", {"day": "Monday"})


def test_log_probabilities_of_a_prompt(url):
    """What evaluation harnesses do: score a continuation that the model has not written itself."""
    with openai.OpenAI(base_url=f"{url}/v1", api_key="a-key", max_retries=0, timeout=120) as client:

        def score(prompt, **more):
            asked = {"model": MODEL, "echo": True, "logprobs": 1, "temperature": 0, **more}
            choice = client.completions.create(prompt=prompt, **asked).choices[0]
            return choice, choice.logprobs

        choice, right = score("The capital of France is Paris", max_tokens=0)
        _, wrong = score("The capital of France is cheese", max_tokens=0)
        assert choice.text == "".join(right.tokens) == "The capital of France is Paris"
        assert right.token_logprobs[0] is None
        assert right.text_offset == [0, 3, 11, 14, 21, 24]
        assert right.token_logprobs[-1] > -1 > -5 > wrong.token_logprobs[-1]
        assert right.token_logprobs[-1] == max(right.top_logprobs[-1].values())  # greedy would have said it too

        again, with_answer = score("The capital of France is", max_tokens=1)
        assert again.text == choice.text
        assert with_answer.token_logprobs[1:] == pytest.approx(right.token_logprobs[1:], abs=0.05)


def test_choices_are_different_and_can_be_repeated(url):
    with openai.OpenAI(base_url=f"{url}/v1", api_key="a-key", max_retries=0, timeout=120) as client:

        def choices(**more):
            asked = {"model": MODEL, "messages": COUNT, "max_tokens": 8, "temperature": 1.5, "seed": 5, **more}
            return [choice.message.content for choice in client.chat.completions.create(**asked).choices]

        several = choices(n=3)
        assert len(set(several)) > 1
        assert choices()[0]
        banned = choices(temperature=0, logit_bias={"33": -100})  # 33 is the token "1"
        assert "1" not in banned[0][:1]
