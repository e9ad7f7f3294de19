"""Where llama.cpp's shared libraries are, and a digest of them."""

import hashlib
import importlib.util
import os
import re
from collections.abc import Iterable
from pathlib import Path

# llama-cpp-python itself looks here first.
LIBRARY_VARIABLE = "LLAMA_CPP_LIB_PATH"
_IS_LIBRARY = re.compile(r"\.(so|dylib|dll)(\.|$)")


def llama_libraries() -> list[Path]:
    """The libraries that llama-cpp-python would load, sorted; none where it is not installed. Nothing is imported."""
    directory = os.environ.get(LIBRARY_VARIABLE)
    if directory is None:
        spec = importlib.util.find_spec("llama_cpp")
        places = list(spec.submodule_search_locations or ()) if spec is not None else []
        directories = [Path(place) / "lib" for place in places]
    else:
        directories = [Path(directory)]
    found = (path for place in directories if place.is_dir() for path in place.iterdir())
    return sorted(path for path in found if _IS_LIBRARY.search(path.name) and path.is_file())


def digest(files: Iterable[Path]) -> str:
    """A short digest of the files' names and contents (10 MB in 10 ms); one that is copied elsewhere keeps it."""
    total = hashlib.sha256()
    for path in files:
        total.update(path.name.encode() + b"\0")
        with path.open("rb") as handle:
            total.update(hashlib.file_digest(handle, "sha256").digest())
    return total.hexdigest()[:16]
