"""Servers to measure, each started alone on the same model, threads, context and batch size."""

import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psutil

from localllm.models.pull import pull
from localllm.models.store import ModelStore
from localllm.paths import Home

MODEL = "smollm2-135m"


@dataclass(frozen=True)
class Load:
    """What every server is given."""

    gguf: Path
    threads: int
    n_ctx: int
    n_batch: int
    slots: int


@dataclass(frozen=True)
class Running:
    """A server that answers."""

    name: str
    base_url: str
    model: str
    pid: int

    def peak_memory(self) -> int:
        """Largest resident size so far of the process and its children, in bytes (Linux); 0 elsewhere."""
        root = psutil.Process(self.pid)
        total = 0
        for process in (root, *root.children(recursive=True)):
            status = Path(f"/proc/{process.pid}/status")
            if status.exists():
                lines = [line for line in status.read_text().splitlines() if line.startswith("VmHWM")]
                total += int(lines[0].split()[1]) * 1024 if lines else 0
        return total


def starter(home: Home) -> Path:
    """The starter model's file in ``home``."""
    store = ModelStore(home)
    return store.file(pull("starter", store))


@contextmanager
def ours(load: Load, home: Home) -> Iterator[Running]:
    """``localllm serve``."""
    port = _free_port()
    command = [sys.executable, "-P", "-m", "app", "--home", str(home.root), "serve", MODEL, "--port", str(port)]
    command += ["--ctx", str(load.n_ctx), "--threads", str(load.threads)]
    with _server("localllm", command, port, MODEL) as running:
        yield running


@contextmanager
def llama_server(load: Load, _home: Home) -> Iterator[Running]:
    """llama.cpp's own server, from ``$LLAMA_SERVER`` or the PATH."""
    port = _free_port()
    command = [_llama_server() or "llama-server", "-m", str(load.gguf), "--port", str(port), "--host", "127.0.0.1"]
    command += ["-c", str(load.n_ctx), "-t", str(load.threads), "-b", str(load.n_batch), "-ub", str(load.n_batch)]
    command += ["-np", str(load.slots), "--kv-unified", "--no-webui"]
    with _server("llama-server", command, port, "any") as running:
        yield running


def _llama_server() -> str | None:
    return os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")


PEERS = {"localllm": ours, "llama-server": llama_server}


def missing(name: str) -> str:
    """Why a peer cannot be measured here; empty when it can."""
    if name == "llama-server" and _llama_server() is None:
        return "llama-server is not on the PATH (or in $LLAMA_SERVER)"
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _server(name: str, command: list[str], port: int, model: str) -> Iterator[Running]:
    """Run ``command`` until it is no longer needed; begins when the model answers."""
    with tempfile.TemporaryFile() as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            base_url = f"http://127.0.0.1:{port}"
            deadline = time.monotonic() + 120
            while not _answers(base_url, model):
                if process.poll() is not None or time.monotonic() > deadline:
                    log.seek(0)
                    raise RuntimeError(f"{name} did not start:\n{log.read()[-2000:].decode(errors='replace')}")
                time.sleep(0.2)
            yield Running(name, base_url, model, process.pid)
        finally:
            process.terminate()
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def _answers(base_url: str, model: str) -> bool:
    try:
        body = {"model": model, "prompt": "a", "max_tokens": 1}
        return httpx2.post(f"{base_url}/v1/completions", json=body, timeout=60).status_code == 200
    except httpx2.HTTPError:
        return False
