"""The GGUF validator under atheris, a coverage-guided fuzzer. The tests start it; by hand it is started so::

    .venv/bin/python -m tests.fuzz.gguf_target FOUND_DIRECTORY [MORE_INPUTS…] [libFuzzer's own options]

It ends with a status other than 0 at the first input for which a promise does not hold, and writes that input down.
"""

import os
import sys
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["localllm.gguf_header", "localllm.gguf_cursor", "localllm.memory", "localllm.sanitize"]
):
    from tests.fuzz.ggml_reader import GGMLReader
    from tests.fuzz.gguf_check import check_gguf


def main() -> None:
    """Run until libFuzzer's options say that it is enough."""
    # A file in memory: on a disk, writing the same file anew waits for the disk, and takes most of the time.
    path = Path(f"/proc/self/fd/{os.memfd_create('model')}")

    ggml = GGMLReader()

    def check(content: bytes) -> None:
        check_gguf(content, path, ggml)

    atheris.Setup(sys.argv, check)
    atheris.Fuzz()


if __name__ == "__main__":
    main()
