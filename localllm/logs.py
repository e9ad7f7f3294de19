"""Logging to a file under the home. No prompt and no answer is ever logged."""

import logging
import os
from functools import partial
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler

from localllm.errors import SettingsError
from localllm.paths import FILE_MODE, Home

_FORMAT = "%(asctime)s %(process)d %(levelname)s %(name)s: %(message)s"
_MAX_BYTES = 1_000_000


class _PrivateFileHandler(RotatingFileHandler):
    """Every file that it opens, the first and those after each turn-over, is for the person alone."""

    def _open(self) -> TextIOWrapper:
        opener = partial(os.open, mode=FILE_MODE)
        return open(self.baseFilename, "a", encoding=self.encoding, opener=opener)


def log_to_file(home: Home, name: str, level: str = "info") -> None:
    """Send this process's logging to ``logs/<name>.log`` (0600, 1 MB, two older ones kept).

    Raises:
        SettingsError: The file cannot be written.
    """
    path = home.logs / f"{name}.log"
    try:
        handler = _PrivateFileHandler(path, maxBytes=_MAX_BYTES, backupCount=2, encoding="utf-8")
    except OSError as error:
        raise SettingsError(
            f"{path} cannot be written: {error.strerror}.", "Set LOCALLLM_HOME to a directory that you can write."
        ) from error
    handler.setFormatter(logging.Formatter(_FORMAT))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(level.upper())
