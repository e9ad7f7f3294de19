"""The quantizing child with 160 MB of memory beside what it takes to start; the mapped source does not count."""

import resource
import sys
from pathlib import Path

from quant.child_side import answer
from quant.llama_quantize_worker import work

if __name__ == "__main__":
    if sys.platform == "linux":
        used = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmData:"))
        limit = int(used.split()[1]) * 1024 + (160 << 20)
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    answer(work)
