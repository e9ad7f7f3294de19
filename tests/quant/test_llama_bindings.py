"""The C functions alone, and the whole package after them."""

import subprocess
import sys

_PROGRAM = """
import sys
from quant.llama_bindings import load_bindings
lib = load_bindings()
assert lib.llama_model_quantize_default_params().ftype >= 0
assert "numpy" not in sys.modules
assert "llama_cpp" not in sys.modules
import llama_cpp
assert llama_cpp.Llama
assert llama_cpp.llama_cpp is lib is load_bindings()
"""


def test_the_package_is_not_imported_and_can_be_later():
    subprocess.run([sys.executable, "-c", _PROGRAM], check=True)
