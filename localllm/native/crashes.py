"""The signals with which native code dies when it does not suit the processor, in words."""

import signal

# A process that ends by one of these was ended by its own code; SIGKILL and SIGTERM come from somebody else.
_WORDS = {
    signal.SIGILL: "an illegal instruction",
    signal.SIGSEGV: "an access to memory that is not there",
    signal.SIGBUS: "a wrong access to memory",
    signal.SIGFPE: "an impossible calculation",
    signal.SIGABRT: "a failed check of its own",
}


def crash_signal(returncode: int | None) -> signal.Signals | None:
    """The signal of a process that crashed; None for one that ended by itself, was killed, or runs."""
    if returncode is None or returncode >= 0:
        return None
    return next((number for number in _WORDS if number == -returncode), None)


def mend_hint(returncode: int) -> str:
    """What to do about an illegal instruction, as a sentence after others; empty for other ends."""
    if crash_signal(returncode) is not signal.SIGILL:
        return ""
    return " llama.cpp was probably built for another processor: `localllm doctor --mend` builds it for this one."


def how_it_ended(returncode: int | None) -> str:
    """How a process ended, in words: ``an illegal instruction (SIGILL)``, ``signal 9``, ``exit code 1``."""
    crash = crash_signal(returncode)
    if crash is not None:
        return f"{_WORDS[crash]} ({crash.name})"
    return f"exit code {returncode}" if returncode is None or returncode >= 0 else f"signal {-returncode}"
