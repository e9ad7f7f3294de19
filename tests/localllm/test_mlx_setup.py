"""MLX within its bounds."""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

from localllm import mlx_setup
from localllm.mlx_setup import bound_memory

ROOT = Path(__file__).resolve().parents[2]


def test_memory_and_cache_are_bounded_and_nothing_is_wired():
    told = {}
    mx = SimpleNamespace(
        set_memory_limit=lambda limit: told.update(memory=limit),
        set_cache_limit=lambda limit: told.update(cache=limit),
        set_wired_limit=lambda limit: told.update(wired=limit),
    )
    bound_memory(mx, 16 << 30)
    assert told == {"memory": 16 << 30, "cache": 2 << 30}
    assert mx.set_wired_limit(1 << 30) == 0
    assert "wired" not in told


def test_mlx_lm_itself_wires_nothing_after_that():
    # On a Mac mlx-lm wires what a model may take in every generation, and sets it back afterwards.
    program = """
from localllm.mlx_setup import prepare_process
prepare_process(1, cpu=True)
import mlx.core as mx
mx.metal.is_available = lambda: True
info = {"max_recommended_working_set_size": 1 << 34, "architecture": "applegpu"}
mx.device_info = mx.metal.device_info = lambda *_: info
from mlx_lm.utils import maybe_set_recommended_wired_limit
print(maybe_set_recommended_wired_limit())
"""
    command = [sys.executable, "-P", "-W", "ignore", "-c", program]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout.strip() == "0", done.stderr[-2000:]


def test_nobody_of_ours_wires_memory():
    named = re.compile(r"set_(recommended_)?wired_limit")
    places = [
        path.relative_to(ROOT)
        for package in ("app", "finetune", "localllm", "quant", "serve")
        for path in sorted((ROOT / package).rglob("*.py"))
        if named.search(path.read_text())
    ]
    assert places == [Path("localllm/mlx_setup.py")]


def test_metal_gets_little_at_once_unless_the_person_says_otherwise():
    program = """
import os, platform, sys
from localllm import mlx_setup
mlx_setup.platform.system = lambda: "Darwin"
mlx_setup.preload_blas = lambda: ""
mlx_setup.blas_environment = lambda home: {}
mlx_setup.machine_memory = lambda: type("Memory", (), {"budget": 1 << 32})
mlx_setup.prepare_process(1, cpu=True)
print(os.environ["MLX_MAX_OPS_PER_BUFFER"])
"""
    for environment, wanted in (({}, "16"), ({"MLX_MAX_OPS_PER_BUFFER": "40"}, "40")):
        command = [sys.executable, "-P", "-c", program]
        done = subprocess.run(
            command, env={**os.environ, **environment}, capture_output=True, text=True, timeout=60, check=False
        )
        assert done.stdout.strip() == wanted, done.stderr[-2000:]
    assert mlx_setup._METAL_OPERATIONS == 16
