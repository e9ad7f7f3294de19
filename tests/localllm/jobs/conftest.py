"""Jobs that are real processes."""

from tests.fakes.jobs import jobs, start

__all__ = ["jobs", "start"]
