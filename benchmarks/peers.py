"""Servers to measure, each started alone on the same model, threads, context and batch size.

=================  ================================================================================================
llama-server       ``$LLAMA_SERVER``, or on the PATH
llama-cpp-python   ``$LLAMA_CPP_PYTHON_SERVER``: ``examples/server/server.py`` of its source archive, which batches (the
                   server inside the package does not); run by ``$LLAMA_CPP_PYTHON``, a Python that has fastapi and
                   the same llama-cpp-python (this one by default)
mlx-lm             its server, with a model in MLX form
=================  ================================================================================================
"""

import importlib.util
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx2
import psutil

from localllm.models.pull import pull
from localllm.models.store import ModelStore
from localllm.paths import Home

MODEL = "smollm2-135m"
_UNUSED_TOKEN = 16  # of SmolLM2: reserved, and never drawn


@dataclass(frozen=True)
class Load:
    """What every server is given.

    Attributes:
        path: The GGUF file, or the directory of a model in MLX form.
        threads: For llama.cpp; MLX chooses its own.
        n_ctx: Tokens in the KV cache.
        n_batch: Tokens in a batch at most.
        slots: Requests at once.
    """

    path: Path
    threads: int
    n_ctx: int
    n_batch: int
    slots: int


@dataclass(frozen=True)
class Running:
    """A server that answers.

    Attributes:
        name: Of the peer.
        base_url: Where it is.
        model: What it calls the model.
        pid: Its process.
        extra: More fields for every request.
    """

    name: str
    base_url: str
    model: str
    pid: int
    extra: dict[str, Any] = field(default_factory=dict)

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

    def all_seconds(self) -> float:
        """Processor time so far of the process and its children."""
        root = psutil.Process(self.pid)
        times = [process.cpu_times() for process in (root, *root.children(recursive=True))]
        return sum(spent.user + spent.system for spent in times)

    def front_seconds(self) -> float | None:
        """Processor time so far of a process that only speaks HTTP; None where the model is in the same one."""
        process = psutil.Process(self.pid)
        if not process.children():
            return None
        times = process.cpu_times()
        return times.user + times.system


def starter(home: Home) -> Path:
    """The starter model's file in ``home``."""
    store = ModelStore(home)
    return store.file(pull("starter", store))


def mlx_model(home: Home) -> Path:
    """The starter model in MLX form, unpacked, in ``home``; its answers never end by themselves."""
    # Deferred: it is needed for one engine only.
    from quant.convert import from_gguf

    directory = home.root / "starter-mlx"
    # MLX has fast kernels for 16 bits on Apple's GPUs only.
    from_gguf(starter(home), directory, dtype="bf16" if sys.platform == "darwin" else "f32")
    # mlx-lm's server cannot ignore the end of a turn, so no token is one, for both servers alike.
    for name in ("config.json", "generation_config.json"):
        path = directory / name
        path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": _UNUSED_TOKEN}))
    pull(str(directory), ModelStore(home), as_name=f"{MODEL}:mlx")
    return directory


@contextmanager
def ours(load: Load, home: Home) -> Iterator[Running]:
    """``localllm serve``."""
    port = _free_port()
    command = [sys.executable, "-P", "-m", "app", "--home", str(home.root), "serve", "--port", str(port)]
    command += ["--ctx", str(load.n_ctx), "--threads", str(load.threads)]
    model = f"{MODEL}:mlx" if load.path.is_dir() else f"{MODEL}:q4_1"
    with _server("localllm", command, port, model) as running:
        yield running


@contextmanager
def llama_server(load: Load, _home: Home) -> Iterator[Running]:
    """llama.cpp's own server, from ``$LLAMA_SERVER`` or the PATH."""
    port = _free_port()
    command = [_llama_server() or "llama-server", "-m", str(load.path), "--port", str(port), "--host", "127.0.0.1"]
    command += ["-c", str(load.n_ctx), "-t", str(load.threads), "-b", str(load.n_batch), "-ub", str(load.n_batch)]
    command += ["-np", str(load.slots), "--kv-unified", "--no-webui"]
    with _server("llama-server", command, port, "any") as running:
        yield running


@contextmanager
def llama_cpp_python(load: Load, home: Home) -> Iterator[Running]:
    """llama-cpp-python's example server. It cannot ignore the end of a turn, so the tokens that end one are banned."""
    port = _free_port()
    model = {"path": str(load.path), "n_ctx": load.n_ctx, "n_batch": load.n_batch, "n_ubatch": load.n_batch}
    model |= {"n_seq_max": load.slots, "threads": load.threads, "threads_batch": load.threads, "store_logits": False}
    config = home.root / "llama-cpp-python.json"
    config.write_text(json.dumps({"server": {"host": "127.0.0.1", "port": port}, "model": model}))
    command = [_llama_cpp_python(), os.environ["LLAMA_CPP_PYTHON_SERVER"], "-C", str(config)]
    banned = {str(token): -100 for token in _end_tokens(load.path)}
    with _server("llama-cpp-python", command, port, "any", {"logit_bias": banned}) as running:
        yield running


@contextmanager
def mlx_lm(load: Load, _home: Home) -> Iterator[Running]:
    """mlx-lm's own server."""
    port = _free_port()
    command = [sys.executable, "-P", "-m", "mlx_lm", "server", "--model", str(load.path), "--port", str(port)]
    command += ["--host", "127.0.0.1", "--decode-concurrency", str(load.slots), "--prompt-concurrency", "8"]
    command += ["--prefill-step-size", str(load.n_batch)]
    with _server("mlx-lm", command, port, str(load.path)) as running:
        yield running


def _end_tokens(gguf: Path) -> list[int]:
    """The tokens that end a turn or a text, as far as the file names them."""
    # Deferred: it is needed for this peer only.
    from quant.tensors.gguf_reader import GGUFSource

    with GGUFSource(gguf) as source:
        names = ("bos", "eos", "eot")  # SmolLM2's own BOS begins a chat's turn, and ends its text
        ids = {source.metadata.get(f"tokenizer.ggml.{name}_token_id") for name in names}
        ends = ("<|endoftext|>", "<|im_end|>")
        ids |= {index for index, text in enumerate(source.metadata["tokenizer.ggml.tokens"]) if text in ends}
    return sorted(token for token in ids if token is not None)


def _llama_cpp_python() -> str:
    return os.environ.get("LLAMA_CPP_PYTHON") or sys.executable


def _llama_server() -> str | None:
    return os.environ.get("LLAMA_SERVER") or shutil.which("llama-server")


PEERS = {
    "llama": {"localllm": ours, "llama-server": llama_server, "llama-cpp-python": llama_cpp_python},
    "mlx": {"localllm": ours, "mlx-lm": mlx_lm},
}


def missing(name: str) -> str:
    """Why a peer cannot be measured here; empty when it can."""
    if name == "llama-server" and _llama_server() is None:
        return "llama-server is not on the PATH (or in $LLAMA_SERVER)"
    if name == "llama-cpp-python":
        if not Path(os.environ.get("LLAMA_CPP_PYTHON_SERVER", "")).is_file():
            return "$LLAMA_CPP_PYTHON_SERVER does not name examples/server/server.py of llama-cpp-python's source"
        check = [_llama_cpp_python(), "-c", "import fastapi, llama_cpp, openai"]
        if subprocess.run(check, capture_output=True, check=False).returncode:
            return "the Python for llama-cpp-python's server ($LLAMA_CPP_PYTHON) lacks fastapi, openai or llama_cpp"
    if name == "mlx-lm" and importlib.util.find_spec("mlx_lm") is None:
        return "mlx-lm is not installed"
    return ""


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


@contextmanager
def _server(
    name: str, command: list[str], port: int, model: str, extra: dict[str, Any] | None = None
) -> Iterator[Running]:
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
            yield Running(name, base_url, model, process.pid, extra or {})
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
