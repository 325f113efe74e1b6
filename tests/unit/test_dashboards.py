"""The Python that writes the dashboards: colours and places."""

from __future__ import annotations

import re

import pytest

from generator import colours
from generator.dashboard import dashboard, line


def hues(name: str) -> set[str]:
    """The colours that the expressions for routes give a name, as Grafana would."""
    found = set()
    for pattern, hue in colours.ROUTES.items():
        body, flags = re.fullmatch(r"/(.*)/(i?)", pattern).groups()
        if re.search(body, name, re.IGNORECASE if flags else 0):
            found.add(hue)
    return found


@pytest.mark.parametrize(
    "route",
    ["/", "/cache-me", "/info", "/api/Users", "/users/<int:id>", "/a/<b>/c/<path:d>", "none"],
)
def test_a_route_has_one_colour_without_a_meaning_of_its_own(route: str) -> None:
    (hue,) = hues(route)
    assert hue in {*colours.HUES, colours.IDLE}


def test_the_last_fixed_part_of_a_rule_decides_on_its_colour() -> None:
    assert hues("/api/users/<int:id>") == hues("/users")
    assert hues("/api/users") != hues("/api/orders")


def test_the_sample_routes_can_be_told_apart() -> None:
    samples = ["/", "/cache-me", "/info", "unmatched"]
    assert len({frozenset(hues(name)) for name in samples}) == len(samples)


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


def test_widths_must_be_given_for_all_panels_of_a_line_or_none() -> None:
    with pytest.raises(ValueError, match="shorter"):
        dashboard("uid", "T", "D.", variables=[], rows={"": [line(4, {}, {}, widths=[24])]})
