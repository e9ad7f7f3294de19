"""The worker of jobs on a disk that takes only small files; so do its children."""

import resource
import signal
import sys

from localllm.jobs import worker

if __name__ == "__main__":
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    sys.exit(worker.main())
