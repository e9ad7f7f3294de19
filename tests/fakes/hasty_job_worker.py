"""A worker that may also run the entries of ``tests.fakes.job_entries``, and gives a cancelled job half a second."""

import sys

from localllm.jobs import worker

if __name__ == "__main__":
    sys.exit(worker.main(packages=("tests",), grace=0.5))
