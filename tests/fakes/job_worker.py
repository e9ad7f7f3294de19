"""A worker that may also run the entries of ``tests.fakes.job_entries``."""

import sys

from localllm.jobs import worker

if __name__ == "__main__":
    sys.exit(worker.main(packages=("tests",)))
