"""Charts: round ticks that span the data, points inside the box, nothing invented."""

from __future__ import annotations

import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from fewstep.report.charts import MOST_POINTS, charts, label, line_chart, thin, ticks
from fewstep.report.metrics import read_metrics

NUMBERS = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))


@given(NUMBERS, st.floats(1e-3, 1e6))
def test_ticks_span_the_range_with_round_steps(low, width):
    found = ticks(low, low + width)
    assert found[0] <= low + 1e-6 * width and found[-1] >= low + width * (1 - 1e-6)
    assert 2 <= len(found) <= 9
    step = found[1] - found[0]
    digits = f"{step:.0e}"[0]
    assert digits in "125" or step == pytest.approx(width, rel=1)


def line(*values):
    return {x: {"a": value} for x, value in enumerate(values)}


@given(st.dictionaries(st.integers(0, 500), NUMBERS, min_size=1, max_size=30))
def test_all_points_are_in_the_box(points):
    chart = line_chart("x", {x: {"a": points[x]} for x in sorted(points)})
    left, top, right, bottom = chart.box
    spots = re.findall(r"[ML](\S+) ([\d.e+-]+)(?=[ML]|$)", chart.lines[0][1])
    assert len(spots) == len(points)
    for x, y in spots:
        assert left - 0.1 <= float(x) <= right + 0.1 and top - 0.1 <= float(y) <= bottom + 0.1


def test_values_that_are_not_finite_leave_a_gap():
    (_, path), *_ = line_chart("x", line(1.0, math.nan, 3.0)).lines
    assert path.count("M") == 2 and "nan" not in path
    assert line_chart("x", line(math.nan)) is None
    assert line_chart("x", {}) is None


def test_a_line_goes_on_where_it_has_no_value():
    lines = dict(line_chart("x", {0: {"a": 1, "b": 1}, 1: {"b": 2}, 2: {"a": 3, "b": 3}}).lines)
    assert lines["a"].count("M") == lines["b"].count("M") == 1
    assert lines["a"].count("L") == 1 and lines["b"].count("L") == 2


def test_pointing_anywhere_shows_the_values_of_the_nearest_place():
    chart = line_chart("x", {0: {"a": 1.0, "b": 2.0}, 10: {"a": math.nan, "b": 3.0}})
    left, _, right, _ = chart.box
    (start, middle, x, texts), (again, end, _, others) = chart.strips
    assert start == x == left and middle == again and end == right
    assert [text.split() for text in texts] == [["step", "0"], ["a", "1"], ["b", "2"]]
    assert [text.split() for text in others] == [["step", "10"], ["b", "3"]]


def test_many_points_become_means_over_common_strips():
    rows = {i: {"a": 1.0} | ({"b": float(i)} if i % 2 == 0 else {}) for i in range(5000)}
    points = thin(rows)
    assert len(points) == MOST_POINTS and all(len(values) == 2 for values in points.values())
    assert {values["a"] for values in points.values()} == {1.0}
    assert all(abs(x - values["b"]) < 5000 / MOST_POINTS for x, values in points.items())


def test_wide_positive_ranges_are_logarithmic_where_allowed():
    chart = line_chart("x", line(1e-3, 1.0, 1e3))
    assert "log" in chart.note and chart.y_ticks[0][1] == "0.001"
    assert "log" not in line_chart("x", line(1e-3, 1.0, 1e3), may_log=False).note


@pytest.mark.parametrize(
    ("value", "text"), [(0.0, "0"), (3e-5, "3e-5"), (1234567.0, "1e6"), (0.25, "0.25")]
)
def test_labels_are_short(value, text):
    assert label(value) == text


def test_metrics_survive_a_torn_end_and_a_resume(tmp_path):
    file = tmp_path / "metrics.jsonl"
    file.write_text(
        '{"step": 1, "loss/dm": 1.0}\n{"step": 2, "loss/dm": 2.0, "note": "x"}\n'
        '{"step": 2, "loss/dm": 3.0}\n[1]\n{"step": 3, "lo',
        encoding="utf-8",
    )
    rows = read_metrics(file)
    assert [(row["step"], row["loss/dm"]) for row in rows] == [(1, 1.0), (2, 3.0)]
    assert read_metrics(tmp_path / "none.jsonl") == []


def test_figures_are_grouped_into_families():
    row = {"step": 1, "loss/ca": 1, "loss/dm": 2, "loss/fake_teacher": 3, "k/dm": 1}
    row |= {"health/fake_teacher_loss@0.1": 2, "health/teacher_loss@0.1": 1, "preview/score": 1}
    found = {chart.title: chart for chart in charts([row, {**row, "step": 2}])}
    assert [name for name, _ in found["Student: loss per objective"].lines] == ["ca", "dm"]
    assert [name for name, _ in found["Fake teacher: loss"].lines] == ["fake teacher"]
    assert found["Gap between the teachers by sigma"].y_ticks[0][1] == "0.9"
    assert "Preview score" in found and "Norm k" in found and "Learning rates" not in found
