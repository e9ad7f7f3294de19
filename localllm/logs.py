"""Logging to a file under the home. No prompt and no answer is ever logged."""

import logging
import os
from logging.handlers import RotatingFileHandler

from localllm.paths import FILE_MODE, Home

_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"


def log_to_file(home: Home, name: str, level: str = "info") -> None:
    """Send this process's logging to ``logs/<name>.log`` (0600, 1 MB, two older ones kept)."""
    path = home.logs / f"{name}.log"
    descriptor = os.open(path, os.O_CREAT | os.O_APPEND, FILE_MODE)
    os.close(descriptor)
    handler = RotatingFileHandler(path, maxBytes=1_000_000, backupCount=2, encoding="utf-8")
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
