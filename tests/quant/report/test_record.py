"""What follows from figures: the frontier, the recommendation, the warnings; and what is kept of them."""

import json

import pytest

from localllm.errors import InvalidModelError
from quant.report.record import as_json, in_order, kept_report, read_report, report_path
from tests.fakes.models import put_model
from tests.fakes.reports import made_up_report, made_up_row, put_report


def test_what_is_beaten_and_by_whom(home):
    report = made_up_report(put_model(home))
    assert [row.name for row in report.rows] == [
        "smollm2-135m:q4_1",
        "q8_0",
        "q6_k",
        "q5_0",
        "smollm2-135m:q4_k_m",
        "q3_k_m",
        "q2_k",
    ]
    assert {row.name: row.beaten_by for row in report.rows if row.beaten_by} == {"q5_0": "smollm2-135m:q4_k_m"}
    assert [row.name for row in report.frontier] == [row.name for row in report.rows if row.name != "q5_0"]
    assert report.warnings == ("q5_0 is no choice: smollm2-135m:q4_k_m is smaller and diverges less.",)


def test_the_source_beats_what_is_larger():
    rows = in_order(
        [
            made_up_row("a:q4_1", 100, 0.0, kind="source"),
            made_up_row("q8_0", 170, 0.001),
            made_up_row("a:hf", 100, 1e-9, kind="model"),
            made_up_row("same", 100, 0.0, kind="model"),
        ]
    )
    assert {row.name: row.beaten_by for row in rows} == {
        "a:q4_1": "", "q8_0": "a:q4_1", "a:hf": "a:q4_1", "same": "",
    }  # fmt: skip


def test_the_smallest_within_the_limit_is_recommended(home):
    model = put_model(home)
    report = made_up_report(model)
    assert report.recommended.name == "smollm2-135m:q4_k_m"
    assert "within a mean KL of 0.05 nats (it has 0.0190)" in report.advice
    assert report.row_of_type("q4_k_m") is report.recommended
    assert report.row_of_type("q4_1") is None  # the source is nothing to choose
    poor = made_up_report(model, rows=[made_up_row("q3_k_m", 94, 0.09), made_up_row("q2_k", 88, 0.3)])
    assert poor.recommended is None
    assert "q3_k_m comes nearest" in poor.advice
    larger = made_up_report(model, rows=[made_up_row("f32", 10**9, 0.0)])
    assert larger.recommended is None
    assert "Nothing that was measured is smaller" in larger.advice


def test_a_report_is_kept_for_these_files_and_no_others(home):
    model = put_model(home)
    assert kept_report(home, model) is None
    report = put_report(home, model, skipped=[("smollm2-135m:x", "damaged")])
    assert kept_report(home, model) == report
    assert json.loads(as_json(report))["recommended"] == "smollm2-135m:q4_k_m"
    other = put_model(home, "other")
    report_path(home, other).parent.mkdir(parents=True)
    report_path(home, model).rename(report_path(home, other))
    assert kept_report(home, other) == report  # the same hashes: the same model under another name
    record = json.loads(report_path(home, other).read_text())
    report_path(home, other).write_text(json.dumps(record | {"sha256": ["1" * 64]}))
    assert kept_report(home, other) is None


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"format": 2}', '{"format": 1, "recommended": null, "rows": [], "skipped": []}', "\xff"]
)
def test_what_is_no_report_is_refused(tmp_path, text):
    path = tmp_path / "report.json"
    path.write_bytes(text.encode("latin-1"))
    with pytest.raises(InvalidModelError, match=r"report"):
        read_report(path)
