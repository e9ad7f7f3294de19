"""llama.cpp's C functions as llama-cpp-python declares them, without what else that package imports."""

import importlib.util
import sys
from types import ModuleType
from typing import Any


def load_bindings() -> Any:
    """The module ``llama_cpp.llama_cpp``.

    Its package would bring numpy, jinja2 and more first: 0.15 s, in a child process that may not live as long. So an
    empty package stands in for it while its one module is imported.
    """
    spec = importlib.util.find_spec("llama_cpp")
    assert spec is not None  # we depend on it
    stand_in = ModuleType("llama_cpp")
    stand_in.__path__ = list(spec.submodule_search_locations or ())
    known = sys.modules.setdefault("llama_cpp", stand_in)
    try:
        return importlib.import_module("llama_cpp.llama_cpp")
    finally:
        if known is stand_in:
            del sys.modules["llama_cpp"]
