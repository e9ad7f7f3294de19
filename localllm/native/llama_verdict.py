"""Which way of loading llama.cpp works on this machine: probed once, kept in the home, lowered when a model dies.

The verdict belongs to the libraries and the processor: another build, or a virtual machine that has moved, is probed
anew. Ways that need another build are in :mod:`.rebuild`.
"""

from dataclasses import asdict, dataclass, replace
from pathlib import Path

from localllm.native.libraries import LIBRARY_VARIABLE, digest, llama_libraries
from localllm.native.llama_params import WAYS, Way, way_named
from localllm.native.probing import Probe, RunProbe, run_probe
from localllm.native.processor import Processor, read_processor
from localllm.native.record import keep_record, read_record
from localllm.paths import Home

PROBE = "localllm.native.llama_probe"
# llama.cpp rounds activations to 8 bits: the probe's logits are 0.025 from NumPy's on every build seen. A matrix that
# lacks eight rows makes that 0.053 and more, a wrong one 0.37 (tests/localllm/native/test_llama_probe.py).
TOLERANCE = 0.045
_FORM = 1  # of the file, and of the probe: a newer one asks again


@dataclass(frozen=True)
class Attempt:
    """A way that was tried.

    Attributes:
        way: Its name.
        failure: Why it does not work, in one line; empty when it does.
    """

    way: str
    failure: str = ""


@dataclass(frozen=True)
class Verdict:
    """What is known of llama.cpp here.

    Attributes:
        attempts: In the order in which they were made; at most the last one works.
        features: What the library was built with, in llama.cpp's words; empty when it does not even load.
        gpu: Whether it can put layers on a GPU.
        at_work: The way was lowered because a model died in the one before, not because the probe found it.
    """

    attempts: tuple[Attempt, ...]
    features: tuple[str, ...] = ()
    gpu: bool = False
    at_work: bool = False

    @property
    def way(self) -> Way | None:
        """The way to load; None where none works."""
        last = self.attempts[-1]
        return None if last.failure else way_named(last.way)

    @property
    def failure(self) -> str:
        """Why the first way did not work; empty when it did."""
        return self.attempts[0].failure

    @property
    def lower_ways(self) -> list[Way]:
        """The ways that were not tried and differ from those on this build, the fastest first."""
        tried = {attempt.way for attempt in self.attempts}
        return [way for way in WAYS if way.name not in tried and (way.gpu or self.gpu)]


def verdict_path(home: Home, processor: Processor | None = None) -> Path:
    """Where the verdict on the present libraries and this processor is kept."""
    processor = processor or read_processor()
    return home.native / f"llama-{_FORM}-{digest(llama_libraries())}-{processor.key}.json"


def known_verdict(home: Home) -> Verdict | None:
    """The verdict, if there is one; a damaged one is none."""
    record = read_record(verdict_path(home))
    try:
        attempts = tuple(Attempt(**attempt) for attempt in record.pop("attempts"))
        verdict = Verdict(**{**record, "attempts": attempts, "features": tuple(record["features"])})
        return verdict if attempts and {attempt.way for attempt in attempts} <= {way.name for way in WAYS} else None
    except (TypeError, KeyError):
        return None


def keep_verdict(home: Home, verdict: Verdict) -> None:
    """Write it, for these libraries and this processor."""
    keep_record(verdict_path(home), asdict(verdict))


def prove_llama(
    home: Home,
    *,
    anew: bool = False,
    probe: RunProbe = run_probe,
) -> Verdict:
    """The verdict; where there is none, each way is probed until one works, about a second each, and it is kept.

    Args:
        home: Where it is kept.
        anew: Probe although there is a verdict.
        probe: Runs a probe.
    """
    if not anew and (known := known_verdict(home)) is not None:
        return known
    verdict = probe_ways(probe)
    keep_verdict(home, verdict)
    return verdict


def probe_ways(probe: RunProbe = run_probe, *, library: Path | None = None) -> Verdict:
    """Probe one way after another until one works.

    Args:
        probe: Runs a probe.
        library: Directory of a build that is not installed; None takes the installed one.
    """
    environment = {} if library is None else {LIBRARY_VARIABLE: str(library)}
    attempts: list[Attempt] = []
    features: tuple[str, ...] = ()
    gpu = True  # until a probe has told
    for way in WAYS:
        if not way.gpu and not gpu:
            continue
        found = probe(PROBE, way.name, environment=environment)
        if found.facts:
            features, gpu = tuple(found.facts["features"]), bool(found.facts["gpu"])
        attempts.append(Attempt(way.name, _failure(found)))
        if not attempts[-1].failure or not found.facts:
            break  # it works, or it does not even load: no way of loading will mend that
    return Verdict(tuple(attempts), features, gpu)


def lower_verdict(home: Home, verdict: Verdict, way: Way, failure: str) -> None:
    """Take note that a model died in the verdict's way, and that its work was done in a lower one.

    Args:
        home: Where the verdict is kept.
        verdict: As it was.
        way: In which it worked.
        failure: How it died before.
    """
    failed = (*verdict.attempts[:-1], replace(verdict.attempts[-1], failure=failure))
    keep_verdict(home, replace(verdict, attempts=(*failed, Attempt(way.name)), at_work=True))


def _failure(found: Probe) -> str:
    if found.failure:
        return found.failure
    for name, words in (("single", "token by token"), ("batch", "in a batch")):
        if not float(found.facts[name]) <= TOLERANCE:
            return f"wrong numbers {words} (off by {float(found.facts[name]):.0%})"
    return ""
