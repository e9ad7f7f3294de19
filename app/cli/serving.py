"""What ``localllm serve`` does once its arguments are read; it imports the web server, so ``serve.py`` defers it."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable

from localllm.adapters import AdapterStore
from localllm.api_keys import KeyStore
from localllm.logs import log_to_file
from localllm.models.store import ModelStore
from localllm.paths import Home
from localllm.sanitize import one_line
from localllm.settings import Settings
from serve.discovery import running_server, stop_managed
from serve.engine.ladder import LadderStarter
from serve.http.server import DRAIN_SECONDS, Running, ServerOptions, run_server
from serve.registry import Registry


def serve(
    home: Home,
    settings: Settings,
    models: tuple[str, ...],
    api_key: str,
    allow_hosts: tuple[str, ...],
    *,
    as_json: bool,
) -> int:
    """Serve in the foreground until a signal; return the exit code.

    Args:
        home: Whose models.
        settings: Resolved.
        models: Are loaded at once.
        api_key: Clients must send it; empty asks for none.
        allow_hosts: Host headers to allow besides the loopback names.
        as_json: Print one line of JSON when ready.

    Raises:
        LocalLLMError: A model is not there or cannot be loaded; the address cannot be bound; a server runs already.
    """
    store = ModelStore(home)
    registry = Registry(store, AdapterStore(home))
    names = [registry.resolve(name).name for name in models]
    log_to_file(home, "serve", settings.log_level)
    options = ServerOptions(settings.host, settings.port, managed=False, api_key=api_key, allow_hosts=allow_hosts)

    async def ready(running: Running) -> None:
        await _announce(running, store, names, bool(api_key or KeyStore(home).list()), as_json=as_json)

    asyncio.run(_serve(home, settings, options, ready))
    _say("Stopped.")
    return 0


async def _serve(
    home: Home, settings: Settings, options: ServerOptions, ready: Callable[[Running], Awaitable[None]]
) -> None:
    while (record := running_server(home)) is not None:
        if record.managed:
            _say("The app's own server is running; taking its place.")
        await stop_managed(home, record)
    await run_server(home, settings, options, LadderStarter(home), on_ready=ready, on_stopping=_stopping)


async def _announce(running: Running, store: ModelStore, models: list[str], keyed: bool, *, as_json: bool) -> None:
    """Load the models, then tell where the server is and how it is used."""
    url = f"{running.record.base_url}/v1"
    here = [str(manifest.model_name) for manifest in store.list()]
    _say(f"Serving at {url}" + (" (key needed)" if keyed else ""))
    for name in models:
        _say(f"Loading {name}…")
        async with running.supervisor.engine(name) as (_, engine):
            _say(f"Loaded {name}: {engine.info.n_ctx} tokens of context.")
    _say("Models: " + (", ".join(here) if here else "none yet; `localllm pull starter` fetches a small one."))
    example = {"model": (models or here or ["MODEL"])[0], "messages": [{"role": "user", "content": "Hello"}]}
    key = ' -H "Authorization: Bearer $LOCALLLM_API_KEY"' if keyed else ""
    _say(f"Try: curl {url}/chat/completions{key} -H 'Content-Type: application/json' -d '{json.dumps(example)}'")
    _say("Ctrl-C stops it.")
    if as_json:
        report = {"url": url, "pid": running.record.pid, "models": here, "loaded": models}
        print(json.dumps(report), flush=True)


def _stopping(n_requests: int) -> None:
    if n_requests:
        answers = "one answer" if n_requests == 1 else f"{n_requests} answers"
        _say(f"Stopping: waiting up to {DRAIN_SECONDS} s for {answers}; Ctrl-C again does not wait.")


def _say(line: str) -> None:
    print(one_line(line), file=sys.stderr, flush=True)
