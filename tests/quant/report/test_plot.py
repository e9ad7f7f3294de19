"""The picture: valid, every model in it and named, the frontier a line."""

import re
from xml.etree import ElementTree

from quant.report.plot import foot, quality_plot, short_name
from tests.fakes.models import put_model
from tests.fakes.reports import made_up_report, made_up_row

SVG = "{http://www.w3.org/2000/svg}"


def test_every_model_is_in_it(home):
    report = made_up_report(put_model(home, "a.b-c"))
    picture = ElementTree.fromstring(quality_plot(report))
    texts = [text.text for text in picture.iter(f"{SVG}text")]
    assert {short_name(row, report) for row in report.rows} <= set(texts)
    assert ":q4_k_m" in texts
    dots = [dot for dot in picture.iter(f"{SVG}circle") if dot.get("r") == "4"]
    assert len(dots) == len(report.rows)
    hollow = [dot for dot in dots if dot.get("fill") == "white"]
    assert len(hollow) == 1  # q5_0
    assert len([dot for dot in picture.iter(f"{SVG}circle") if dot.get("r") == "9"]) == 1  # recommended
    (line,) = picture.iter(f"{SVG}polyline")
    assert len(line.get("points").split()) == len(report.frontier)


def test_smaller_is_left_and_worse_is_up(home):
    report = made_up_report(put_model(home))
    places = [
        tuple(map(float, point.split(","))) for point in re.search(r'points="([^"]+)"', quality_plot(report))[1].split()
    ]
    assert [x for x, _ in places] == sorted((x for x, _ in places), reverse=True)
    assert [y for _, y in places] == sorted((y for _, y in places), reverse=True)
    assert all(56 <= x <= 704 and 32 <= y <= 360 for x, y in places)


def test_labels_do_not_lie_on_each_other(home):
    rows = [made_up_row(f"type-{i}", 100_000_000 + 900_000 * i, 0.01 * 1.03**i) for i in range(8)]
    text = quality_plot(made_up_report(put_model(home), rows=rows))
    boxes = [
        (float(x), float(y), float(x) + 6.2 * len(label), float(y) + 10)
        for x, y, label in re.findall(r'font-size="11" x="([\d.]+)" y="([\d.]+)" fill="#333">([^<]+)<', text)
    ]
    assert len(boxes) == 9
    for index, (left, top, right, bottom) in enumerate(boxes):
        for other in boxes[:index]:
            assert right < other[0] or left > other[2] or bottom < other[1] or top > other[3]


def test_the_source_alone_and_two_alike(home):
    model = put_model(home)
    for rows in ([], [made_up_row("twin", 271_000_000, 0.0)]):
        report = made_up_report(model, rows=rows)
        ElementTree.fromstring(quality_plot(report))
        assert foot(report.rows) > 0
    report = made_up_report(model)
    assert foot(report.rows) == 1e-4  # below q8_0, at 0.0008
