"""Adding up the engine's steps."""

import pytest

from serve.engine.step_meter import SHARE_BOUNDS, StepMeter, StepReport
from serve.engine.wire import decode_frame, encode_frame


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


def test_the_share_is_what_the_library_did_not_take():
    clock = Clock()
    meter = StepMeter(clock)

    def native():
        clock.now += 0.099
        return 7

    assert meter.timed(native)() == 7
    meter.batch(3, 2, n_guessed=4, n_right=1)
    meter.step(0.1)
    report = meter.report(10, 100)
    assert abs(report.python_seconds - 0.001) < 1e-9
    assert report.share.counts[SHARE_BOUNDS.index(0.01) :][:2] in {(1, 0), (0, 1)}  # one hundredth, give or take a bit
    assert (report.seconds.total, sum(report.seconds.counts)) == (0.1, 1)
    assert (report.rows.total, report.n_prefill, report.n_guessed, report.n_right) == (3, 2, 4, 1)
    assert (report.kv_used, report.kv_size) == (10, 100)


def test_the_librarys_time_counts_when_it_fails_too_and_for_one_step_only():
    clock = Clock()
    meter = StepMeter(clock)

    def native():
        clock.now += 1
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        meter.timed(native)()
    assert meter.native == 1
    meter.step(1.0)
    meter.step(1.0)
    assert meter.report(0, 0).python_seconds == 1.0


def test_it_reports_once_a_second_and_when_nothing_more_will_come():
    clock = Clock()
    meter = StepMeter(clock)
    assert not meter.is_due(idle=True)  # nothing has happened
    meter.step(0.01)
    assert not meter.is_due(idle=False)
    assert meter.is_due(idle=True)
    clock.now += 1
    assert meter.is_due(idle=False)
    meter.report(0, 0)
    assert not meter.is_due(idle=True)


def test_a_report_crosses_the_pipe():
    meter = StepMeter()
    meter.batch(3, 2)
    meter.step(0.5)
    report = meter.report(1, 2)
    assert StepReport.from_wire(decode_frame(encode_frame(report.to_wire())[4:])) == report


def test_reports_add_up():
    meter = StepMeter()
    meter.batch(3, 2)
    meter.step(0.5)
    report = meter.report(1, 2)
    both = report + report
    assert both.rows.total == 6
    assert sum(both.seconds.counts) == 2
    assert (both.n_prefill, both.kv_size) == (4, 4)
