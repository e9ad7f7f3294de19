"""Who is writing: a name for a running process that no later process will have."""

import os


def this_process() -> str:
    """A name for this process that no later one will have: its id and when it began."""
    # 14 ms, and only a process that opens conversations needs it.
    import psutil

    return f"{os.getpid()}:{psutil.Process().create_time():.0f}"


def process_alive(owner: str) -> bool:
    """Whether the process named by :func:`this_process` still runs."""
    import psutil

    pid, _, began = owner.partition(":")
    try:
        return abs(psutil.Process(int(pid)).create_time() - float(began)) < 2  # clocks are adjusted while we run
    except (psutil.NoSuchProcess, ValueError):
        return False
    except psutil.AccessDenied:
        return True
