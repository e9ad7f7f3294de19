"""What lm-eval's ``local-completions`` model asks for: its exact requests, and lm-eval itself where it is installed.

lm-eval brings 0.5 GB (pyarrow, pandas, scikit-learn), so it is an extra of its own: ``pip install -e '.[lm-eval]'``, or
an interpreter of another environment that has it in ``$LM_EVAL_PYTHON``.
"""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import httpx2
import numpy as np
import pytest

from quant.tensors.gguf_reader import GGUFSource
from quant.tokenizers.to_hf import write_hf_tokenizer
from tests.fakes.serving import serving

pytestmark = pytest.mark.model

QUESTIONS = [
    ("The capital of France is", [" Paris", " Berlin", " Madrid"], 0),
    ("The opposite of hot is", [" warm", " cold", " fire"], 1),
    ("One, two, three,", [" nine", " blue", " four"], 2),
    ("Water freezes to", [" ice", " gold", " wood"], 0),
]
N_CTX = 512


@pytest.fixture(scope="module")
def reference(starter_path):
    """llama-cpp-python's own class, which keeps the logits of every token; one thread."""
    import llama_cpp

    model = llama_cpp.Llama(
        str(starter_path), n_ctx=N_CTX, n_threads=1, n_threads_batch=1, logits_all=True, flash_attn=True, verbose=False
    )
    yield model
    model.close()


def loglikelihood(reference, context: list[int], whole: list[int]) -> tuple[float, bool]:
    """That of ``whole`` after ``context``, and whether every token of it is the most likely one."""
    reference.reset()
    reference.eval(whole)
    logits = np.array(reference.scores[: len(whole)], dtype=np.float64)
    logps = logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)
    places = range(len(context) - 1, len(whole) - 1)
    chosen = [logps[place, whole[place + 1]] for place in places]
    return float(sum(chosen)), all(int(logits[place].argmax()) == whole[place + 1] for place in places)


def test_its_requests_and_the_models_own_likelihoods(starter_home, reference):
    pairs = []
    for context, choices, _ in QUESTIONS:
        tokens = reference.tokenize(context.encode(), add_bos=False)
        pairs += [(tokens, tokens + reference.tokenize(choice.encode(), add_bos=False)) for choice in choices]
    with serving(starter_home, "smollm2-135m", "--ctx", str(N_CTX), "--threads", "1") as server:

        def ask(**more):
            body = {"model": "smollm2-135m", "temperature": 0, "seed": 1234, **more}
            answer = httpx2.post(f"{server.base_url}/v1/completions", json=body, timeout=120, trust_env=False)
            assert answer.status_code == 200, answer.text
            return sorted(answer.json()["choices"], key=lambda choice: choice["index"])

        scored = ask(prompt=[whole for _, whole in pairs], max_tokens=1, logprobs=1, echo=True)
        alone = ask(prompt=[pairs[0][1]], max_tokens=0, logprobs=1, echo=True)
        [told] = ask(prompt=[pairs[0][0]], max_tokens=12, stop=["\n\n", "<|im_end|>"])
    assert len(scored) == len(pairs)
    for (context, whole), choice in zip(pairs, scored, strict=True):
        # As lm-eval reads it: the last entry is the token that was generated because 0 is not asked for.
        logprobs = choice["logprobs"]
        assert len(logprobs["token_logprobs"]) == len(logprobs["top_logprobs"]) == len(whole) + 1
        given = logprobs["token_logprobs"][len(context) : -1]
        tops = logprobs["top_logprobs"][len(context) : -1]
        wanted, greedy = loglikelihood(reference, context, whole)
        assert sum(given) == pytest.approx(wanted, abs=0.1)  # the batch has other rows: the last bits differ
        assert all(p == max(top.values()) for p, top in zip(given, tops, strict=True)) == greedy
    assert len(alone[0]["logprobs"]["token_logprobs"]) == len(pairs[0][1])
    assert sum(alone[0]["logprobs"]["token_logprobs"][1:]) == pytest.approx(
        sum(scored[0]["logprobs"]["token_logprobs"][1:-1]), abs=0.1
    )
    assert "Paris" in told["text"]
    assert "\n\n" not in told["text"]


def lm_eval_python() -> str:
    """An interpreter that has lm-eval; skips where there is none."""
    if importlib.util.find_spec("lm_eval"):
        return sys.executable
    if chosen := os.environ.get("LM_EVAL_PYTHON"):
        return chosen
    pytest.skip(
        "lm-eval is not installed: pip install -e '.[lm-eval]', or name a Python that has it in $LM_EVAL_PYTHON"
    )


def write_tasks(directory: Path) -> None:
    """A multiple-choice task and one that generates, both from files of their own (YAML, in JSON's form)."""
    rows = [{"context": context, "choices": choices, "label": label} for context, choices, label in QUESTIONS]
    data = directory / "rows.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    common = {
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": str(data)}},
        "test_split": "test",
        "doc_to_text": "{{context}}",
        "target_delimiter": "",
    }
    choose = {
        "task": "own_choice",
        "output_type": "multiple_choice",
        "doc_to_choice": "choices",
        "doc_to_target": "label",
        "metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": True}],
    }
    tell = {
        "task": "own_text",
        "output_type": "generate_until",
        "doc_to_target": "{{choices[label]}}",
        "generation_kwargs": {"until": [".", ","], "max_gen_toks": 8, "do_sample": False},
        "metric_list": [{"metric": "exact_match", "aggregation": "mean", "higher_is_better": True}],
    }
    for task in (choose, tell):
        (directory / f"{task['task']}.yaml").write_text(json.dumps({**common, **task}))


def test_lm_eval_itself(starter_home, starter_path, tmp_path):
    python = lm_eval_python()
    tokenizer, tasks, out = tmp_path / "tokenizer", tmp_path / "tasks", tmp_path / "out"
    for directory in (tokenizer, tasks):
        directory.mkdir()
    write_tasks(tasks)
    with GGUFSource(starter_path) as source:
        write_hf_tokenizer(source.metadata, tokenizer, "llama")
    with serving(starter_home, "smollm2-135m", "--ctx", str(N_CTX), "--threads", "1") as server:
        model = {
            "model": "smollm2-135m",
            "base_url": f"{server.base_url}/v1/completions",
            "tokenizer": str(tokenizer),
            "num_concurrent": "2",
            "max_retries": "1",
        }
        command = [python, "-m", "lm_eval", "run", "--model", "local-completions", "--tasks", "own_choice,own_text"]
        command += ["--model_args", ",".join(f"{key}={value}" for key, value in model.items()), "--batch_size", "4"]
        command += ["--include_path", str(tasks), "--output_path", str(out), "--log_samples"]
        offline = {"HF_HUB_OFFLINE": "1", "HF_DATASETS_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1"}
        run = subprocess.run(
            command,
            env={**os.environ, **offline, "HF_HOME": str(tmp_path / "hf"), "PYTHONPATH": ""},
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
        )
    assert run.returncode == 0, run.stderr[-3000:]
    [report] = out.rglob("results_*.json")
    results = json.loads(report.read_text())["results"]
    assert results["own_choice"]["acc,none"] >= 0.75
    [samples] = out.rglob("samples_own_text_*.jsonl")
    texts = [json.loads(line)["filtered_resps"][0] for line in samples.read_text().splitlines()]
    assert len(texts) == len(QUESTIONS)
    assert "Paris" in texts[0]
