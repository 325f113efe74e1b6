"""The Python that writes the dashboards: where panels are placed."""

from __future__ import annotations

import pytest

from generator.dashboard import dashboard, line
from generator.scope import of_chosen_stack


def test_lines_are_placed_below_each_other_and_rows_have_headers() -> None:
    panel = {"title": "a panel"}
    rows = {"": [line(4, panel, panel)], "Row": [line(7, panel), line(8, panel, panel, panel)]}
    built = dashboard("uid", "Title", "What it is for.", variables=[], rows=rows)
    places = [tuple(each["gridPos"][side] for side in "xywh") for each in built["panels"]]
    assert places == [
        *((0, 0, 12, 4), (12, 0, 12, 4)),
        (0, 4, 24, 1),
        (0, 5, 24, 7),
        *((0, 12, 8, 8), (8, 12, 8, 8), (16, 12, 8, 8)),
    ]
    assert [each["id"] for each in built["panels"]] == list(range(1, 8))


def test_a_line_needs_a_width_for_each_of_its_panels_or_none() -> None:
    with pytest.raises(ValueError, match="shorter"):
        dashboard("uid", "T", "D.", variables=[], rows={"": [line(4, {}, {}, widths=[24])]})


@pytest.mark.parametrize(
    ("expression", "expected"),
    [
        ("up", "up{S}"),
        ("up{}", "up{S}"),
        ('up{job="a}", x=~"b"} > 0', 'up{S, job="a}", x=~"b"} > 0'),
        (
            "sum by (job) (rate(a_total[5m] offset 1m))",
            "sum by (job) (rate(a_total{S}[5m] offset 1m))",
        ),
        ("sum(a:b:c @ end()) or vector(NaN)", "sum(a:b:c{S} @ end()) or vector(NaN)"),
        ("a * on (job) group_left (x) b", "a{S} * on (job) group_left (x) b{S}"),
        (
            'a > bool 1e6 and on () label_replace(b, "c", "$1", "d", "e")',
            'a{S} > bool 1e6 and on () label_replace(b{S}, "c", "$1", "d", "e")',
        ),
        ("a[$__rate_interval:5s]", "a{S}[$__rate_interval:5s]"),
        ('sum({__name__=~"a|b", c="d"})', 'sum({S, __name__=~"a|b", c="d"})'),
    ],
)
def test_each_selector_is_limited_to_the_chosen_stack(expression: str, expected: str) -> None:
    assert of_chosen_stack(expression) == expected.replace("S}", 'stack=~"$stack"}').replace(
        "{S,", '{stack=~"$stack",'
    )
