"""The quantizing child on a disk that takes only small files."""

import resource
import signal

from quant.child_side import answer
from quant.llama_quantize_worker import work

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    answer(work)
