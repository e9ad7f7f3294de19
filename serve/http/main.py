"""The app's own server, started detached by :mod:`serve.discovery`.

Run: ``python -P -m serve.http.main --home DIR --settings JSON``
"""

import argparse
import asyncio
import logging
import sys
from collections.abc import Sequence
from pathlib import Path

from localllm.errors import LocalLLMError
from localllm.logs import log_to_file
from localllm.paths import Home
from localllm.settings import Settings
from serve.discovery import ALREADY_RUNNING, ServerRunningError
from serve.engine.ladder import LadderStarter
from serve.http.server import ServerOptions, run_server

_log = logging.getLogger(__name__)


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until there was nothing to do for a while; return the exit code."""
    parser = argparse.ArgumentParser(prog="python -P -m serve.http.main", description="The app's own server.")
    parser.add_argument("--home", type=Path, required=True, help="the home directory")
    parser.add_argument("--settings", required=True, help="settings as JSON, resolved by whoever starts this")
    args = parser.parse_args(argv)
    home = Home(args.home).ensure()
    settings = Settings.model_validate_json(args.settings)
    log_to_file(home, "server", settings.log_level)
    try:
        asyncio.run(run_server(home, settings, ServerOptions(), LadderStarter(home)))
    except ServerRunningError:
        return ALREADY_RUNNING
    except LocalLLMError as error:
        _log.error("%s", error)  # no traceback: a person can cause it
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
