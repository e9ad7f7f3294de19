"""Paths as a person types them: whatever that is, looking at it does not fail.

:class:`pathlib.Path` raises where a name is too long, a directory is closed, or nobody is called ``~name``.
"""

import os
from pathlib import Path


def typed_path(text: str) -> Path:
    """The absolute path; ``~`` and ``~name`` are homes, where there are such."""
    return Path(os.path.expanduser(text)).absolute()  # noqa: PTH111  see above, as in what follows


def is_there(path: str | Path) -> bool:
    """Whether there is anything that can be seen."""
    return os.path.exists(path)  # noqa: PTH110


def is_file(path: str | Path) -> bool:
    """Whether there is a file that can be seen."""
    return os.path.isfile(path)  # noqa: PTH113


def is_directory(path: str | Path) -> bool:
    """Whether there is a directory that can be seen."""
    return os.path.isdir(path)  # noqa: PTH112
