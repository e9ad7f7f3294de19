"""What is counted, and what never is."""

import openai
import pytest
from prometheus_client.parser import text_string_to_metric_families

from localllm.errors import EngineDiedError, RequestError
from serve.engine.step_meter import StepMeter
from tests.fakes.engine import Script

CANARY = "canary-9f31"


async def scrape(served) -> dict[tuple, float]:
    """Samples by name and label values."""
    async with served.http() as client:
        answer = await client.get("/metrics")
    assert answer.status_code == 200
    assert answer.headers["content-type"].startswith("text/plain")
    assert CANARY not in answer.text
    return {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }


async def chat(served, **more):
    async with served.openai() as client:
        messages = [{"role": "user", "content": CANARY}]
        return await client.chat.completions.create(model="tiny", messages=messages, **more)


async def test_completions(serve):
    served = await serve(Script(texts=("a", "b", CANARY)))
    await chat(served)
    await chat(served, max_tokens=2)
    samples = await scrape(served)
    assert samples["localllm_completions_total", "tiny:f16", "stop"] == 1
    assert samples["localllm_completions_total", "tiny:f16", "length"] == 1
    assert samples["localllm_prompt_tokens_total", "tiny:f16"] == 10
    assert samples["localllm_cached_prompt_tokens_total", "tiny:f16"] == 4
    assert samples["localllm_completion_tokens_total", "tiny:f16"] == 4 + 2
    assert samples["localllm_time_to_first_token_seconds_count", "tiny:f16"] == 2
    assert samples["localllm_inter_token_seconds_count", "tiny:f16"] == 2 + 1
    assert samples["localllm_engine_waiting", "tiny:f16"] == samples["localllm_engine_running", "tiny:f16"] == 0
    assert samples["localllm_model_context_tokens", "tiny:f16"] == 256
    assert samples["localllm_model_memory_bytes", "tiny:f16"] > 0
    assert samples["localllm_http_requests_total", "POST", "/v1/chat/completions", "200"] == 2


async def test_requests_by_route_and_status(serve):
    served = await serve()
    async with served.http() as client:
        await client.get("/v1/models/tiny")
        await client.get(f"/v1/models/{CANARY}")
        await client.get(f"/{CANARY}")
        await client.get("/v1/models", headers={"authorization": "Bearer wrong"})
        await client.get("/v1/models", headers={"host": "evil.example"})
        await client.request(CANARY.upper(), "/v1/models")
        await client.post("/v1/chat/completions", json={"model": CANARY, "messages": []})
    samples = await scrape(served)
    counted = {key[1:]: value for key, value in samples.items() if key[0] == "localllm_http_requests_total"}
    assert counted == {
        ("GET", "/v1/models/{model:path}", "200"): 1,
        ("GET", "/v1/models/{model:path}", "404"): 1,
        ("GET", "other", "404"): 1,
        ("GET", "/v1/models", "401"): 1,
        ("GET", "/v1/models", "403"): 1,
        ("other", "/v1/models", "405"): 1,
        ("POST", "/v1/chat/completions", "400"): 1,
    }


async def test_work_under_way_and_its_cancelling(serve, eventually):
    served = await serve(Script(hold=1))
    async with served.openai() as client:
        stream = await client.chat.completions.create(
            model="tiny", messages=[{"role": "user", "content": "Hi"}], stream=True
        )
        async for chunk in stream:
            if chunk.choices[0].delta.content:
                break
        during = await scrape(served)
        await stream.close()
        await eventually(lambda: served.engine.active == 0)
    after = await scrape(served)
    assert during["localllm_engine_running", "tiny:f16"] == 1
    assert after["localllm_engine_running", "tiny:f16"] == 0
    assert after["localllm_completions_total", "tiny:f16", "cancelled"] == 1
    assert after["localllm_completion_tokens_total", "tiny:f16"] == 1


@pytest.mark.parametrize("script", [Script(refuse=RequestError("No.")), Script(error=EngineDiedError("Dead."))])
async def test_errors(serve, script):
    served = await serve(script)
    with pytest.raises(openai.APIError):
        await chat(served)
    samples = await scrape(served)
    assert samples["localllm_completions_total", "tiny:f16", "error"] == 1
    assert samples["localllm_engine_waiting", "tiny:f16"] == 0
    assert samples.get(("localllm_engine_running", "tiny:f16"), 0) == 0


def steps(n: int, kv_used: int = 5):
    meter = StepMeter()
    for _ in range(n):
        meter.batch(3, 2, n_guessed=4, n_right=1)
        meter.step(0.04)
    return meter.report(kv_used, 100)


async def test_the_engines_steps(serve):
    served = await serve()
    await chat(served)
    served.engine.steps = steps(2)
    samples = await scrape(served)
    assert samples["localllm_engine_step_seconds_count", "tiny:f16"] == 2
    assert samples["localllm_engine_step_seconds_bucket", "0.03", "tiny:f16"] == 0
    assert samples["localllm_engine_step_seconds_bucket", "0.05", "tiny:f16"] == 2
    assert samples["localllm_engine_step_python_share_count", "tiny:f16"] == 2
    assert samples["localllm_engine_step_rows_sum", "tiny:f16"] == 6
    assert samples["localllm_engine_prompt_tokens_computed_total", "tiny:f16"] == 4
    assert samples["localllm_engine_tokens_guessed_total", "tiny:f16"] == 8
    assert samples["localllm_engine_tokens_guessed_right_total", "tiny:f16"] == 2
    assert samples["localllm_engine_preemptions_total", "tiny:f16"] == 0
    assert samples["localllm_engine_kv_used_tokens", "tiny:f16"] == 5
    assert samples["localllm_engine_kv_size_tokens", "tiny:f16"] == 100


async def test_totals_outlive_the_engine_and_what_it_holds_does_not(serve):
    served = await serve()
    await chat(served)
    served.engine.steps = steps(2)
    served.engine.die()
    after = await scrape(served)
    assert after["localllm_engine_step_seconds_count", "tiny:f16"] == 2
    assert after["localllm_engine_kv_used_tokens", "tiny:f16"] == 0
    await chat(served)
    served.engine.steps = steps(3)
    assert len(served.starter.started) == 2
    assert (await scrape(served))["localllm_engine_step_seconds_count", "tiny:f16"] == 5
