"""The child process of :mod:`quant.llama_plan` and :mod:`quant.llama_quantize`.

python -P -m quant.llama_quantize_worker
"""

import re
from pathlib import Path
from typing import Any

from localllm.errors import DiskFullError, QuantizeError
from localllm.files import disk_full_as_error
from localllm.sanitize import one_line
from quant.child import Progress
from quant.child_side import answer
from quant.llama_native import NativeImatrix, NativeOptions, quantize_native

# How llama.cpp begins the line of the third of 272 tensors: the numbers in brackets, the name, a dash, the shape.
_TENSOR = re.compile(r"^\[\s*(\d+)/\s*(\d+)\]\s+(\S+)\s+-")
_REFUSAL = "failed to quantize: "
_PROBE_BYTES = 1 << 20


class _Log:
    """llama.cpp's log, which comes in pieces: lines, and which tensor is worked on."""

    def __init__(self, progress: Progress) -> None:
        self.lines: list[str] = []
        self._pending = ""
        self._progress = progress

    def add(self, text: str) -> None:
        """Take the next piece."""
        starts = not self._pending
        *lines, self._pending = (self._pending + text).split("\n")
        self.lines.extend(lines)
        found = _TENSOR.match(self._pending) if starts else None
        if found:
            number, total, name = found.groups()
            self._progress(name, int(number), int(total))

    def refusal(self) -> str:
        """Why llama.cpp refused, in its words."""
        said = [line.partition(_REFUSAL)[2] for line in self.lines if _REFUSAL in line]
        return one_line(said[-1], 300) if said else "it gave no reason"


def work(request: dict[str, Any], progress: Progress) -> dict[str, Any]:
    """Quantize, or only plan; the result holds llama.cpp's log."""
    options = NativeOptions.of(request["options"])
    imatrix = NativeImatrix(**request["imatrix"]) if request["imatrix"] else None
    source, target = Path(request["source"]), Path(request["target"])
    log = _Log(progress)
    code = quantize_native(source, target, options, imatrix, log.add)
    if code:
        if not options.dry_run:
            _check_room(target.parent)
        raise QuantizeError(f"llama.cpp cannot quantize {source.name}: {log.refusal()}.")
    return {"log": log.lines}


def _check_room(directory: Path) -> None:
    """Raise when the disk is full: llama.cpp says only that a stream failed.

    Raises:
        DiskFullError: Not even a megabyte more can be written.
    """
    written = sorted(path for path in directory.iterdir() if path.is_file())
    probe = written[-1] if written else directory / "probe"
    try:
        with disk_full_as_error(probe), probe.open("ab") as handle:
            handle.write(bytes(_PROBE_BYTES))
    except DiskFullError as error:
        raise DiskFullError("The disk is full: the quantized model does not fit.", error.hint) from error


if __name__ == "__main__":
    answer(work)
