"""A short run of the soak of ``benchmarks/soak.py``: cancels, disconnects, bad inputs, killed engines."""

import argparse
import asyncio

import pytest

from benchmarks.peers import Load, ours
from benchmarks.soak import soak


@pytest.mark.model
@pytest.mark.slow
def test_nothing_is_lost_and_nothing_hangs(starter_home, starter_path):
    load = Load(starter_path, threads=2, n_ctx=4096, n_batch=512, slots=16)
    args = argparse.Namespace(requests=200, clients=10, kills=2, seed=1)
    with ours(load, starter_home) as server:
        assert asyncio.run(soak(server, args))
