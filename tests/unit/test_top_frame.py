"""The frames of ./stack top: numbers, characters, order and size."""

from __future__ import annotations

import dataclasses
import html
import io
import itertools
import re
from typing import Literal

import pytest
from rich.console import Console

from local.settings import ROOT
from local.top import words
from local.top.frame import Canvas, View, frame
from local.top.options import SORTS
from local.top.snapshot import (
    COLUMNS,
    HEADLINE,
    Alert,
    Backlog,
    Figure,
    Route,
    Snapshot,
    Worker,
    ordered,
)

NOW = 1_800_000_000.0
VALUES = {
    "requests_per_second": 22.0,
    "error_ratio": 0.0,
    "cache_hit_ratio": 0.36,
    "p95_hit_seconds": 0.0012,
    "p95_miss_seconds": 0.184,
    "flask_seconds_per_second": 1.5,
}


def route(name: str, **values: float | None) -> Route:
    merged = VALUES | values
    return Route(name, {column.key: Figure(merged[column.key]) for column in COLUMNS})


def worker(number: int, **changes: float | str | bool) -> Worker:
    return dataclasses.replace(
        Worker("10.0.0.1:9200", str(number), 0.5, 2, 4, False, 3.25, 61e6, 400), **changes
    )


SNAPSHOT = Snapshot(
    time=NOW,
    window="1m",
    headline={
        "requests_per_second": Figure(39),
        "error_ratio": Figure(0.26, 0.05),
        "cache_hit_ratio": Figure(0.36, 0.5, low_is_bad=True),
        "p95_seconds": Figure(0.184, 0.5),
        "worker_utilisation": Figure(0.252, 0.9),
        "alerts_firing": Figure(1, 1),
    },
    slowest_route="/report",
    routes=[route("/a"), route("/b/<int:id>", error_ratio=None), route("none")],
    workers=[worker(1), worker(2, in_flight=4, stuck=True)],
    queue={"p50": Figure(0.001), "p95": Figure(0.25, 0.1), "p99": Figure(None)},
    backlog=[Backlog("10.0.0.1:9200", Figure(3, 1024), 2048)],
    alerts=[
        Alert("CacheMissRatioHigh", "firing", NOW - 300, {"route": "/a"}),
        Alert("UpstreamSlow", "pending", NOW - 5, {"route": "/b"}),
    ],
    targets_down=[],
)
HISTORY = {name: [None, *map(float, range(29))] for name in HEADLINE}
MANY = dataclasses.replace(SNAPSHOT, routes=[route(f"/route-{number:02}") for number in range(100)])


def drawn(
    snapshot: Snapshot = SNAPSHOT,
    view: View | None = None,
    canvas: Canvas | None = None,
    *,
    colours: Literal["standard"] | None = None,
) -> str:
    canvas = canvas or on()
    output = io.StringIO()
    console = Console(
        file=output,
        width=canvas.width,
        highlight=False,
        color_system=colours,
        force_terminal=bool(colours),
    )
    console.print(frame(snapshot, HISTORY, view or View(), canvas))
    return output.getvalue()


def on(
    width: int = 100, height: int | None = None, symbols: words.Symbols = words.UNICODE
) -> Canvas:
    return Canvas(symbols, "here", width, height)


def test_a_frame_contains_every_part() -> None:
    text = drawn()
    for part in (
        "39.0",
        "26.0 %!",
        "36.0 %!",
        "184 ms",
        "/report",
        "25.2 %",
        "6/8 threads",
        "1 pending",
        "/b/<int:id>",
        "2/4",
        "4/4 stuck",
        "61 MB",
        "6 m",
        "p95 250 ms!",
        "3 of 2048",
        "firing  CacheMissRatioHigh  /a  since",
        "(5 m)",
    ):
        assert part in text, part


def test_the_picture_in_the_readme_has_the_headings_of_a_frame() -> None:
    picture = (ROOT / "docs" / "img" / "top.svg").read_text()
    shown = html.unescape(re.sub(r"<[^>]*>", "\n", picture)).replace("\N{NO-BREAK SPACE}", " ")
    first = ("Requests/s", "Route", "Worker")
    lines = [line.split() for line in drawn().splitlines() if line.lstrip().startswith(first)]
    assert len(lines) == len(first)
    assert [word for line in lines for word in line if word not in shown] == []


@pytest.mark.parametrize("live", [False, True])
@pytest.mark.parametrize("symbols", [words.UNICODE, words.ASCII])
@pytest.mark.parametrize("width", [20, 30, 46, 60, 72, 80, 100, 250])
def test_no_line_is_wider_than_the_terminal(
    width: int, symbols: words.Symbols, *, live: bool
) -> None:
    for snapshot in (SNAPSHOT, MANY):
        lines = drawn(snapshot, View(live=live), on(width, symbols=symbols)).splitlines()
        assert max(map(len, lines)) <= width
        # Nothing was wrapped: each route has one line.
        assert sum(line.startswith(("/", "none")) for line in lines) >= len(snapshot.routes)


@pytest.mark.parametrize(
    ("width", "height"), list(itertools.product((46, 80, 120), (18, 22, 24, 40)))
)
def test_a_frame_fits_the_terminal_and_keeps_its_keys(width: int, height: int) -> None:
    lines = drawn(MANY, View(live=True), on(width, height)).splitlines()
    assert len(lines) <= height
    assert "q quit" in lines[-1]
    assert any(line.startswith("/route-") for line in lines)
    assert any("CacheMissRatioHigh" in line for line in lines)


def test_without_unicode_every_character_is_ascii() -> None:
    odd = dataclasses.replace(SNAPSHOT, routes=[route("/größe")], slowest_route="/größe")
    for view in (View(live=True), View(live=True, help=True)):
        assert drawn(odd, view, on(80, symbols=words.ASCII)).isascii()
    assert "/gr??e" in drawn(odd, canvas=on(symbols=words.ASCII))


def test_names_cannot_send_commands_to_the_terminal() -> None:
    evil = dataclasses.replace(SNAPSHOT, routes=[route("/\x1b[2J[red]x")])
    text = drawn(evil)
    assert "\x1b" not in text
    assert "/?[2J[red]x" in text


def test_without_colours_numbers_beyond_their_threshold_differ() -> None:
    text = drawn()
    assert "\x1b" not in text
    assert "36.0 %!" in text
    assert "25.2 %!" not in text


def test_in_colour_numbers_beyond_their_threshold_are_red_and_the_others_green() -> None:
    text = drawn(colours="standard")
    assert "\x1b[1;31m36.0 %!" in text
    assert "\x1b[1;32m25.2 %" in text


def test_scrolling_shows_the_other_routes() -> None:
    view = View(sort="route", live=True, offset=60)
    text = drawn(MANY, view, on(height=24))
    assert "/route-60" in text
    assert "/route-00" not in text
    assert "Route 61-" in text


def test_scrolling_ends_with_the_last_route() -> None:
    text = drawn(MANY, View(sort="route", live=True, offset=99), on(height=24))
    assert "/route-99" in text
    assert "/route-97" in text


@pytest.mark.parametrize("sort", SORTS)
@pytest.mark.parametrize("reverse", [False, True])
def test_rows_that_are_not_routes_stay_last_in_every_order(sort: str, *, reverse: bool) -> None:
    view = View(sort=sort, reverse=reverse)
    lines = drawn(view=view).splitlines()
    rows = [line.split()[0] for line in lines if line.startswith(("/", "none"))]
    assert rows[-1] == "none"


def test_routes_are_sorted_by_numbers_from_the_highest_and_unknown_ones_last() -> None:
    routes = [
        route("/a", error_ratio=0.1),
        route("/b", error_ratio=None),
        route("/c", error_ratio=0.3),
        route("/d", error_ratio=0.1),
    ]
    assert [each.name for each in ordered(routes, "error_ratio", reverse=False)] == [
        *("/c", "/a", "/d", "/b")
    ]
    assert [each.name for each in ordered(routes, "error_ratio", reverse=True)] == [
        *("/a", "/d", "/c", "/b")
    ]
    assert [each.name for each in ordered(routes, "route", reverse=True)] == [
        *("/d", "/c", "/b", "/a")
    ]


def test_an_idle_stack_says_so_in_place_of_numbers() -> None:
    idle = dataclasses.replace(
        SNAPSHOT,
        headline=dict.fromkeys(HEADLINE, Figure(None)),
        slowest_route="",
        routes=[],
        alerts=[],
    )
    text = drawn(idle)
    assert "no requests yet" in text
    assert "No alert is active" in text


def test_the_first_line_shows_a_problem() -> None:
    view = View(live=True, problem="no news for 12 s: Prometheus does not answer")
    assert "no news for 12 s" in drawn(view=view).splitlines()[0]
    down = dataclasses.replace(SNAPSHOT, targets_down=["flask-app"])
    assert "not scraped: flask-app" in drawn(down, canvas=on(120)).splitlines()[0]


def test_workers_of_several_replicas_have_their_instance() -> None:
    two = [worker(1), worker(1, instance="10.0.0.2:9200")]
    text = drawn(dataclasses.replace(SNAPSHOT, workers=two))
    assert "1 · 10.0.0.2:9200" in text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 %"), (1, "100 %"), (0.00001, "0.01 %"), (0.0026, "0.26 %"), (0.9999999, "99.99 %")],
)
def test_only_0_and_1_show_as_0_and_100_percent(value: float, text: str) -> None:
    assert words.share(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (0, "0"),
        (0.00002, "<0.001"),
        (0.0035, "0.0035"),
        (0.25, "0.25"),
        (38.94, "38.9"),
        (1234.5, "1,234"),
    ],
)
def test_rates_keep_two_to_three_digits(value: float, text: str) -> None:
    assert words.rate(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(0.0012, "1.2 ms"), (0.184, "184 ms"), (2.041, "2.04 s"), (12.34, "12.3 s")]
)
def test_latencies_keep_two_to_three_digits(value: float, text: str) -> None:
    assert words.seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(5, "5 s"), (61, "1 m"), (3 * 3600 + 5, "3 h"), (2.5 * 86400, "2 d")]
)
def test_ages(value: float, text: str) -> None:
    assert words.age(value) == text


def test_a_sparkline_ends_with_the_newest_value_and_reaches_its_highest() -> None:
    assert words.UNICODE.sparkline([0, 1, None, 2, 4], 4) == "▃ ▅█"
    assert words.UNICODE.sparkline([0, 0], 4) == "  ▁▁"
    assert words.UNICODE.sparkline([], 3) == "   "


@pytest.mark.parametrize(
    ("share", "bar"), [(0, "...."), (0.5, "##.."), (7, "####"), (None, "....")]
)
def test_bars(share: float | None, bar: str) -> None:
    assert words.ASCII.bar(share, 4) == bar


@pytest.mark.parametrize(
    ("environment", "encoding", "expected"),
    [
        ({"LANG": "en_US.UTF-8"}, "utf-8", True),
        ({}, "utf-8", True),
        ({"LANG": "de_DE.utf8"}, "UTF-8", True),
        ({"LANG": "en_US.UTF-8", "LC_ALL": "C"}, "utf-8", False),
        ({"LANG": "C", "LC_CTYPE": "C.UTF-8"}, "utf-8", False),  # Python set it, not the user
        ({"LANG": "C", "LC_CTYPE": "en_US.UTF-8"}, "utf-8", True),
        ({"LC_CTYPE": "C.UTF-8"}, "utf-8", True),
        ({"LANG": "en_US.ISO-8859-1"}, "iso-8859-1", False),
        ({"LANG": "en_US.UTF-8"}, "ascii", False),
    ],
)
def test_unicode_follows_the_locale(
    environment: dict[str, str], encoding: str, *, expected: bool
) -> None:
    assert words.unicode_expected(environment, encoding) is expected
