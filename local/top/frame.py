"""One frame of `./stack top`, drawn from a snapshot for a width and a height."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Literal

from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from local.top import words
from local.top.options import SORTS
from local.top.snapshot import COLUMNS, Alert, Figure, Snapshot, Worker, ordered
from local.top.words import Symbols

SORT_KEYS = dict(zip(SORTS, ("route", *(column.key for column in COLUMNS)), strict=True))
GOOD, BAD, QUIET, TITLE = "green", "bold red", "bright_black", "bold"
TITLES = {
    "requests_per_second": ("Requests/s", words.rate),
    "error_ratio": ("Errors", words.share),
    "cache_hit_ratio": ("Hit ratio", words.share),
    "p95_seconds": ("Slowest p95", words.seconds),
    "worker_utilisation": ("Workers busy", words.share),
    "alerts_firing": ("Alerts firing", "{:.0f}".format),
}
# Columns of the routes' table that go first on a narrow terminal, and the width each of them needs.
DROPPED = (
    "p95_hit_seconds",
    "flask_seconds_per_second",
    "p95_miss_seconds",
    "error_ratio",
    "cache_hit_ratio",
)
CELL, ROUTE_AT_LEAST = 11, 14  # characters
WIDE, NARROW = 72, 46  # characters
LOW = 22  # lines
HELP = (
    ("s, S", "sort the routes by the next column, by the one before"),
    ("r", "reverse the order"),
    ("w", "window of all rates and ratios: 1 m, 5 m, 1 h"),
    ("p, space", "pause, go on"),
    ("up, down", "scroll the routes (also k, j, page up, page down)"),
    ("?, h", "this help"),
    ("q", "quit"),
)
MEANING = (
    "A number with ! is beyond the threshold that its alert reads. p95 misses: of all requests "
    "that waited for Flask. Flask s/s: seconds of Flask's time that a route takes each second; "
    "1 keeps one thread busy."
)


@dataclasses.dataclass
class View:
    """What the user chose, and whether the data is current."""

    sort: str = "flask"  # one of SORTS
    reverse: bool = False
    offset: int = 0  # routes scrolled past
    paused: bool = False
    help: bool = False
    live: bool = False
    problem: str = ""  # why there is no newer snapshot


@dataclasses.dataclass(frozen=True)
class Canvas:
    """The area to draw on; without a height, the frame is as long as its content."""

    symbols: Symbols
    source: str  # where the figures come from
    width: int
    height: int | None = None


def frame(
    snapshot: Snapshot, history: dict[str, list[float | None]], view: View, canvas: Canvas
) -> RenderableType:
    """The whole picture."""
    symbols, width, height = canvas.symbols, canvas.width, canvas.height
    low = height is not None and height < LOW
    parts: list[RenderableType] = [
        _title(snapshot, view, canvas),
        *_headline(snapshot, history, canvas, low=low),
    ]
    if view.help:
        return Group(*parts, Text(), *_help(), Text(), _keys(view, width))
    alerts = _alert_lines(snapshot, symbols)
    rows = _Rows(len(snapshot.routes), len(snapshot.workers), len(alerts))
    if height is not None:
        # Beside the rows: headings, the queue, the keys, and blank lines where there is room.
        used = 1 + _headline_height(width, low=low) + 2 + 1 + 1 + (0 if low else 4)
        rows = rows.within(height - used)
    gap = [] if low else [Text()]
    parts += [
        *gap,
        _routes(snapshot, view, canvas, rows.routes),
        *gap,
        _workers(snapshot, symbols, width, rows.workers),
        *gap,
        _queue(snapshot, symbols),
        *alerts[: rows.alerts],
    ]
    if view.live:
        parts += [*gap, _keys(view, width)]
    return Group(*parts)


@dataclasses.dataclass(frozen=True)
class _Rows:
    """How many rows each part has."""

    routes: int
    workers: int
    alerts: int

    def within(self, lines: int) -> _Rows:
        """Share out this many lines: one to each part in rotation, until none is left."""
        wanted = {"routes": self.routes, "alerts": self.alerts, "workers": self.workers}
        given = dict.fromkeys(wanted, 0)
        while lines > 0 and given != wanted:
            for name, most in wanted.items():
                if lines > 0 and given[name] < most:
                    given[name] += 1
                    lines -= 1
        return _Rows(**given)


def _title(snapshot: Snapshot, view: View, canvas: Canvas) -> Text:
    symbols = canvas.symbols
    text = Text(no_wrap=True, overflow="crop")
    text.append("stack top", TITLE)
    text.append(f"  {words.clock(snapshot.time, snapshot.time)}  over {snapshot.window}")
    highest_first = (view.sort == "route") == view.reverse
    title = next((each.title for each in COLUMNS if each.key == SORT_KEYS[view.sort]), "name")
    text.append(f"  routes by {title} {symbols.down if highest_first else symbols.up}")
    if view.problem:
        text.append(f"  {symbols.text(view.problem)}", BAD)
    elif view.paused:
        text.append("  paused", "bold yellow")
    elif canvas.width >= WIDE:
        text.append(f"  {symbols.text(canvas.source)}", QUIET)
    if snapshot.targets_down:
        down = ", ".join(snapshot.targets_down)
        text.append(f"  not scraped: {symbols.text(down)}", BAD)
    return text


# --- the top line ---------------------------------------------------------------------------------


def _headline_height(width: int, *, low: bool) -> int:
    return (2 if low else 4) * (1 if width >= WIDE else 2)


def _headline(
    snapshot: Snapshot, history: dict[str, list[float | None]], canvas: Canvas, *, low: bool
) -> list[Table]:
    symbols, width = canvas.symbols, canvas.width
    names = list(TITLES)
    lines = [names] if width >= WIDE else [names[:3], names[3:]]
    tables = []
    for line in lines:
        cell = width // len(line) - 1
        table = Table.grid(expand=True, padding=(0, 1, 0, 0))
        for _ in line:
            table.add_column(ratio=1, no_wrap=True, overflow="crop")
        table.add_row(*(Text(TITLES[name][0], QUIET) for name in line))
        table.add_row(*(_number(name, snapshot, symbols) for name in line))
        if not low:
            table.add_row(*(Text(_note(name, snapshot, symbols, cell), QUIET) for name in line))
            table.add_row(
                *(
                    Text(symbols.sparkline(history.get(name, []), min(cell, 30)), "blue")
                    for name in line
                )
            )
        tables.append(table)
    return tables


def _number(name: str, snapshot: Snapshot, symbols: Symbols) -> Text:
    figure = snapshot.headline[name]
    if figure.value is None:
        return Text(symbols.dash, QUIET)
    style = TITLE if figure.limit is None else f"bold {GOOD}"
    return _figure(figure, TITLES[name][1](figure.value), style)


def _note(name: str, snapshot: Snapshot, symbols: Symbols, width: int) -> str:
    """The text below a number of the top line."""
    limit = snapshot.headline[name].limit
    if name == "p95_seconds":
        return _shortened(symbols.text(snapshot.slowest_route), width, symbols)
    if name == "alerts_firing":
        pending = sum(alert.state == "pending" for alert in snapshot.alerts)
        return f"{pending} pending" if pending else ""
    if name == "worker_utilisation":
        in_flight = sum(worker.in_flight or 0 for worker in snapshot.workers)
        threads = sum(worker.threads or 0 for worker in snapshot.workers)
        return f"{in_flight:.0f}/{threads:.0f} threads"
    if limit is None:
        return ""
    return f"alert {'<' if snapshot.headline[name].low_is_bad else '>'} {limit * 100:g} %"


# --- the tables -----------------------------------------------------------------------------------


def _routes(snapshot: Snapshot, view: View, canvas: Canvas, rows: int) -> Table:
    symbols, width = canvas.symbols, canvas.width
    columns = list(COLUMNS)
    for key in DROPPED:
        if ROUTE_AT_LEAST + CELL * len(columns) > width:
            columns = [column for column in columns if column.key != key]
    sort = SORT_KEYS[view.sort]
    routes = ordered(snapshot.routes, sort, reverse=view.reverse)
    offset = max(0, min(view.offset, len(routes) - rows))
    shown = routes[offset : offset + rows]
    heading = "Route"
    if len(shown) < len(routes):
        heading = f"Route {offset + 1}-{offset + len(shown)} of {len(routes)}"

    def titled(title: str, key: str) -> Text:
        return Text(title, "reverse" if key == sort else "")

    first = width - CELL * len(columns) - 1
    table = _table(
        (titled(heading, "route"), None, "left"),
        *((titled(column.title, column.key), CELL - 1, "right") for column in columns),
    )
    for route in shown:
        name = _shortened(symbols.text(route.name), first, symbols)
        cells = (_cell(route.cells[column.key], column.unit, symbols) for column in columns)
        table.add_row(Text(name), *cells)
    if not routes:
        table.add_row(Text("no requests yet", QUIET))
    return table


def _workers(snapshot: Snapshot, symbols: Symbols, width: int, rows: int) -> Table:
    replicas = len({worker.instance for worker in snapshot.workers}) > 1
    shown = snapshot.workers[:rows]
    heading = "Worker"
    if len(shown) < len(snapshot.workers):
        heading = f"Worker 1-{len(shown)} of {len(snapshot.workers)}"
    bar = 10 if width >= WIDE else 0
    columns = [(heading, None, "left"), ("Busy", bar + 8, "left"), ("In flight", bar + 12, "left")]
    if width >= NARROW:
        columns.append(("Requests/s", 10, "right"))
    if width >= WIDE:
        columns += [("Memory", 8, "right"), ("Age", 6, "right")]
    table = _table(*columns)
    for worker in shown:
        name = f"{worker.worker} {symbols.dot} {worker.instance}" if replicas else worker.worker
        table.add_row(
            Text(symbols.text(name)), *_worker_cells(worker, symbols, bar)[: len(columns) - 1]
        )
    if not snapshot.workers:
        table.add_row(Text("no worker", BAD))
    return table


def _worker_cells(worker: Worker, symbols: Symbols, bar: int) -> list[Text]:
    load = (worker.in_flight or 0) / worker.threads if worker.threads else None
    style = BAD if worker.stuck else "yellow" if load is not None and load >= 1 else "blue"
    busy, in_flight = symbols.bar(worker.busy, bar), symbols.bar(load, bar)
    threads = f"{worker.in_flight or 0:.0f}/{worker.threads or 0:.0f}"
    if worker.stuck:
        threads += " stuck"
    return [
        Text.assemble(
            (busy, "blue"), " " if bar else "", _or_dash(worker.busy, words.share, symbols)
        ),
        Text.assemble(
            (in_flight, style), " " if bar else "", (threads, style if worker.stuck else "")
        ),
        Text(_or_dash(worker.requests_per_second, words.rate, symbols)),
        Text(_or_dash(worker.memory_bytes, words.size, symbols)),
        Text(_or_dash(worker.age_seconds, words.age, symbols)),
    ]


def _queue(snapshot: Snapshot, symbols: Symbols) -> Text:
    text = Text("Queue", TITLE, no_wrap=True, overflow="crop")
    for level, figure in snapshot.queue.items():
        text.append(f"  {level} ", QUIET)
        if figure.value is None:
            text.append(symbols.dash)
        else:
            text.append_text(_figure(figure, words.seconds(figure.value), ""))
    text.append("  Backlog ", TITLE)
    # The fullest listener, since each has a limit of its own.
    fullest = max(snapshot.backlog, key=lambda each: each.connections.value or 0, default=None)
    if fullest is None:
        text.append(symbols.dash)
    else:
        text.append_text(_figure(fullest.connections, f"{fullest.connections.value:.0f}", ""))
        text.append(f" of {fullest.capacity or 0:.0f}", QUIET)
    return text


def _alert_lines(snapshot: Snapshot, symbols: Symbols) -> list[Text]:
    return [_alert(alert, snapshot.time, symbols) for alert in snapshot.alerts] or [
        Text("No alert is active", QUIET)
    ]


def _alert(alert: Alert, now: float, symbols: Symbols) -> Text:
    labels = "  ".join(
        value if name == "route" else f"{name}={value}" for name, value in alert.labels.items()
    )
    return Text.assemble(
        (f"{alert.state:<8}", BAD if alert.state == "firing" else "yellow"),
        (symbols.text(alert.name), TITLE),
        f"  {symbols.text(labels)}" if labels else "",
        (f"  since {words.clock(alert.since, now)} ({words.age(now - alert.since)})", QUIET),
        no_wrap=True,
        overflow="crop",
    )


# --- pieces ---------------------------------------------------------------------------------------


def _help() -> list[RenderableType]:
    table = Table.grid(padding=(0, 2, 0, 0))
    for keys, what in HELP:
        table.add_row(Text(keys, TITLE), Text(what))
    return [table, Text(), Text(MEANING)]


def _keys(view: View, width: int) -> Text:
    keys = {
        "s": "sort",
        "r": "reverse",
        "w": "window",
        "p": "go on" if view.paused else "pause",
        "?": "help",
        "q": "quit",
    }
    for key in ("r", "w", "s", "p"):  # help has them all
        if sum(len(f"{each} {what}  ") for each, what in keys.items()) > width:
            del keys[key]
    text = Text(no_wrap=True, overflow="crop")
    for key, what in keys.items():
        text.append(key, "bold reverse")
        text.append(f" {what}  ")
    return text


def _table(*columns: tuple[str | Text, int | None, Literal["left", "right"]]) -> Table:
    """A table with these headings; one column without a width takes what is left."""
    table = Table(box=None, pad_edge=False, padding=(0, 1, 0, 0), expand=True, header_style=TITLE)
    for title, width, justify in columns:
        # Not rich's own ellipsis, which is Unicode.
        table.add_column(
            title,
            width=width,
            ratio=None if width else 1,
            justify=justify,
            no_wrap=True,
            overflow="crop",
        )
    return table


def _cell(figure: Figure, unit: str, symbols: Symbols) -> Text:
    if figure.value is None:
        return Text(symbols.dash, QUIET)
    return _figure(figure, words.by_unit(unit, figure.value), "")


def _figure(figure: Figure, text: str, style: str) -> Text:
    """A number; beyond its limit in red and, with a "!" for those who see no colours."""
    return Text(f"{text}!", BAD) if figure.bad else Text(text, style)


def _or_dash(value: float | None, shown: Callable[[float], str], symbols: Symbols) -> str:
    return symbols.dash if value is None else shown(value)


def _shortened(text: str, width: int, symbols: Symbols) -> str:
    """The text, its end cut off where it does not fit."""
    return text if len(text) <= width else text[: max(width - 1, 0)] + symbols.more
