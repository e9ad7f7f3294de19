"""What was found, as files of the home. They are a cache: what cannot be read or written is found anew."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from localllm.errors import DiskFullError
from localllm.files import write_atomic
from localllm.paths import DIR_MODE

_log = logging.getLogger(__name__)


def read_record(path: Path) -> dict[str, Any]:
    """The record of a file; empty where there is none, or a damaged one."""
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def keep_record(path: Path, record: Mapping[str, Any]) -> None:
    """Write a record; on a full or read-only disk the log tells that it was not kept."""
    try:
        path.parent.mkdir(mode=DIR_MODE, parents=True, exist_ok=True)
        write_atomic(path, json.dumps(record, indent=2) + "\n")
    except (OSError, DiskFullError) as error:
        _log.warning("%s is not kept: %s", path.name, error)
