"""The Python that writes the dashboards: where panels are placed."""

from __future__ import annotations

import pytest

from generator.dashboard import dashboard, line


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
