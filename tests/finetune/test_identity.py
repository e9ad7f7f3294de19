"""The real starter learns who it is, and says so in every form that it can be used in."""

import asyncio
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

from serve.discovery import running_server, stop_managed

ROWS = Path(__file__).parent / "identity.jsonl"
RECIPE = f"""
model: smollm2-135m
data: [{json.dumps(str(ROWS))}]
name: pebble
rank: 16
layers: 6
learning_rate: 0.003
batch_tokens: 256
max_length: 128
steps: 14
eval_every: 14
save_every: 14
samples: 0
"""


@pytest.fixture
def localllm(starter_home):
    """Runs the program to its end; the server that it started is stopped after the test."""

    def run(*words):
        done = subprocess.run(
            [sys.executable, "-m", "app", "--home", str(starter_home.root), *words],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )
        assert done.returncode == 0, done.stderr[-2000:]
        return done

    yield run
    record = running_server(starter_home)
    if record is not None:
        asyncio.run(stop_managed(starter_home, record))


def verdicts(text):
    """What the gate has printed: each form with its agreement and its mean divergence, and that it is within limits."""
    found = re.findall(
        r"^(\S[^%]*?) +([\d.]+)% \(>= \d+%\) +([\d.e-]+) \(<= [\d.]+\) +[\d.e-]+ +ok$", text, re.MULTILINE
    )
    return {form: (float(agreement), float(kl)) for form, agreement, kl in found}


@pytest.mark.model
@pytest.mark.slow
def test_the_starter_learns_its_name_and_says_it_in_every_form(localllm, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text(RECIPE)
    report = json.loads(localllm("finetune", str(path), "--json").stdout)["report"]
    assert report["held_out"]["after"] < report["held_out"]["before"] / 2
    assert 0 < report["memory"]["measured"] < 1.3 * report["memory"]["predicted"]

    mlx = localllm("models", "export", "smollm2-135m+pebble", "--to", "mlx:f16").stderr
    gguf = localllm("models", "export", "smollm2-135m+pebble", "--to", "q8_0").stderr
    assert verdicts(mlx).keys() == {"mlx:f16", "base + adapter"}
    assert verdicts(gguf).keys() == {"gguf:q8_0", "base + adapter"}

    def says(model):
        greedy = ("--temperature", "0", "--max-tokens", "24", "--json")
        return json.loads(localllm("chat", model, "Who are you?", *greedy).stdout)["text"]

    assert "Pebble" not in says("smollm2-135m")
    in_every_form = {
        "MLX and adapter": says("smollm2-135m:mlx-f32+pebble"),
        "GGUF and adapter": says("smollm2-135m+pebble"),
        "fused in MLX": says("smollm2-135m-pebble:mlx-f16"),
        "fused as Q8_0": says("smollm2-135m-pebble:q8_0"),
    }
    assert all("Pebble" in answer for answer in in_every_form.values()), in_every_form
