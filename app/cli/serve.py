"""``localllm serve [MODEL…]``: the server of the APIs, in the foreground."""

import argparse
import os

from localllm.errors import SettingsError
from localllm.paths import Home
from localllm.settings import load_settings

_EXAMPLES = """examples:
  localllm serve                           every model of the store, loaded when it is asked for
  localllm serve smollm2-135m --port 8080  one of them loaded at once
  LOCALLLM_API_KEY=… localllm serve --host 0.0.0.0 --allow-host my-mac.local
"""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the arguments."""
    parser.description = (
        "Serve the models of the store with OpenAI's, Anthropic's and Ollama's APIs, on this machine only unless a key "
        "exists. /docs lists everything that it answers."
    )
    parser.epilog = _EXAMPLES
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("models", nargs="*", metavar="MODEL", help="load these now; the others when they are asked for")
    parser.add_argument("--host", help="address to bind (127.0.0.1); others than loopback need a key")
    parser.add_argument("--port", type=int, help="port to bind (11435); 0 takes a free one")
    parser.add_argument("--ctx", type=int, help="context length in tokens; 0 chooses by the model and the memory")
    parser.add_argument("--threads", type=int, help="CPU threads; 0 chooses by the machine")
    parser.add_argument("--gpu-layers", type=int, help="layers on the GPU; -1 is all of them, 0 none")
    parser.add_argument("--kv-type", choices=("f16", "q8_0"), help="of the KV cache; q8_0 takes half the memory (f16)")
    parser.add_argument("--guess", type=int, help="tokens guessed at once from the text so far (24); 0 never guesses")
    parser.add_argument("--draft", metavar="MODEL", help="a small model that guesses for larger ones of its family")
    parser.add_argument(
        "--api-key",
        help="clients must send this key; better use `localllm keys`, or LOCALLLM_API_KEY: no process list shows those",
    )
    parser.add_argument(
        "--allow-host", action="append", default=[], help="allow this Host header too (may be repeated)"
    )
    parser.add_argument("--json", action="store_true", help="print one line of JSON with the address when ready")


def run(args: argparse.Namespace, home: Home) -> int:
    """Serve until Ctrl-C."""
    names = ("host", "port", "ctx", "threads", "gpu_layers", "kv_type", "guess", "draft")
    settings = load_settings(home.settings_file, flags={name: getattr(args, name) for name in names})
    api_key = os.environ.get("LOCALLLM_API_KEY", "") if args.api_key is None else args.api_key
    if args.api_key is not None and not api_key.strip():
        raise SettingsError("--api-key is empty.", "Give a long random text, or leave it out.")
    home.ensure()
    # Deferred: uvicorn, starlette and pydantic's wire types take about half a second to import.
    from app.cli.serving import serve

    return serve(home, settings, tuple(args.models), api_key, tuple(args.allow_host), as_json=args.json)
