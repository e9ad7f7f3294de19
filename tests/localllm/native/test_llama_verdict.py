"""Which way of loading works, on machines of several sorts."""

import json

import pytest

from localllm.native import llama_verdict
from localllm.native.llama_params import current_way, model_params, way_named
from localllm.native.llama_verdict import known_verdict, lower_verdict, probe_ways, prove_llama, verdict_path
from localllm.native.probing import Probe
from tests.fakes.machines import needs_compiler, processor

WORKS = {"features": ["AVX2"], "gpu": False, "single": 0.02, "batch": 0.02}


class FakeProbe:
    """Answers by the way; counts."""

    def __init__(self, **answers: Probe) -> None:
        self.answers = answers
        self.asked: list[str] = []

    def __call__(self, module, way, *, environment=None, timeout=60):
        self.asked.append(way)
        return self.answers.get(way.replace("-", "_"), Probe(WORKS))


@needs_compiler
@pytest.mark.parametrize(
    ("sort", "way", "failure"),
    [
        ("amx", "unpacked", "an illegal instruction (SIGILL)"),
        ("wrong", "unpacked", "wrong numbers token by token (off by 100%)"),
        ("gpu", "cpu", "a failed check of its own (SIGABRT)"),
    ],
)
def test_machines_on_which_another_way_works(odd_llama, home, sort, way, failure):
    odd_llama(sort)
    verdict = prove_llama(home)
    assert verdict.way.name == way
    assert verdict.failure == failure
    assert known_verdict(home) == verdict


@needs_compiler
@pytest.mark.parametrize("sort", ["foreign", "unloadable"])
def test_machines_on_which_no_way_works(odd_llama, home, sort):
    odd_llama(sort)
    verdict = prove_llama(home)
    assert verdict.way is None
    assert [attempt.way for attempt in verdict.attempts] == ["full", "unpacked"]
    assert verdict.failure == "an illegal instruction (SIGILL)"


def test_it_is_probed_once_for_these_libraries_and_this_processor(home, monkeypatch, tmp_path):
    probe = FakeProbe()
    prove_llama(home, probe=probe)
    prove_llama(home, probe=probe)
    assert probe.asked == ["full"]
    prove_llama(home, probe=probe, anew=True)
    assert probe.asked == ["full", "full"]
    monkeypatch.setattr(llama_verdict, "read_processor", lambda: processor("amx", tmp_path))
    prove_llama(home, probe=probe)
    assert len(probe.asked) == 3, "the machine has moved"
    (tmp_path / "libllama.so").write_bytes(b"another build")
    monkeypatch.setenv("LLAMA_CPP_LIB_PATH", str(tmp_path))
    prove_llama(home, probe=probe)
    assert len(probe.asked) == 4, "the library is another one"


@pytest.mark.parametrize("text", ["", "[]", '{"attempts": []}', '{"attempts": [{"way": "sideways"}], "features": []}'])
def test_a_damaged_verdict_is_none(home, text):
    prove_llama(home, probe=FakeProbe())
    verdict_path(home).write_text(text)
    assert known_verdict(home) is None
    assert prove_llama(home, probe=FakeProbe()).way.name == "full"
    assert json.loads(verdict_path(home).read_text())["attempts"] == [{"way": "full", "failure": ""}]


def test_a_library_that_does_not_load_is_not_loaded_in_other_ways():
    probe = FakeProbe(full=Probe({}, "OSError: libgomp.so.1: cannot open shared object file"))
    assert probe_ways(probe).way is None
    assert probe.asked == ["full"]


def test_ways_without_the_gpu_are_for_builds_that_have_one():
    fails = Probe({**WORKS, "gpu": True}, "crashed")
    probe = FakeProbe(full=fails, unpacked=fails, cpu=Probe({**WORKS, "gpu": True, "batch": 0.4}))
    verdict = probe_ways(probe)
    assert probe.asked == ["full", "unpacked", "cpu", "cpu-unpacked"]
    assert verdict.way.name == "cpu-unpacked"
    assert verdict.attempts[2].failure == "wrong numbers in a batch (off by 40%)"


def test_no_numbers_are_wrong_numbers():
    assert probe_ways(FakeProbe(full=Probe({**WORKS, "single": float("nan")}))).way.name == "unpacked"


def test_a_model_that_died_lowers_it(home):
    verdict = prove_llama(home, probe=FakeProbe())
    assert [way.name for way in verdict.lower_ways] == ["unpacked"]
    lower_verdict(home, verdict, way_named("unpacked"), "it died")
    lowered = known_verdict(home)
    assert (lowered.way.name, lowered.failure, lowered.at_work, lowered.lower_ways) == ("unpacked", "it died", True, [])


def test_the_parameters_of_each_way(monkeypatch):
    import llama_cpp

    assert current_way().name == "full" or current_way().packed is False  # as this machine needs it
    for name, packed, layers, lists_devices in [
        ("full", True, 7, False),
        ("unpacked", False, 7, False),
        ("cpu", True, 0, True),
        ("cpu-unpacked", False, 0, True),
    ]:
        monkeypatch.setenv("LOCALLLM_LLAMA_WAY", name)
        params = model_params(llama_cpp, 7)
        assert (params.use_extra_bufts, params.n_gpu_layers, bool(params.devices)) == (packed, layers, lists_devices)
