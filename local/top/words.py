"""Numbers as text, and the characters that bars and lines are drawn with."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Mapping, Sequence

MINUTE, HOUR, DAY = 60, 3600, 86400
HUNDRED, TEN = 100, 10
LEAST, MOST = 0.01, 99.99  # percent: only the ratios 0 and 1 show as 0 % and 100 %


@dataclasses.dataclass(frozen=True)
class Symbols:
    """The characters of a terminal with Unicode, or of one without."""

    spark: str
    full: str
    empty: str
    dash: str
    dot: str
    more: str
    down: str
    up: str
    unicode: bool

    def text(self, value: str) -> str:
        """A name from Prometheus; `?` for what the terminal can't show, and for control codes."""
        shown = "".join(character if character.isprintable() else "?" for character in value)
        return shown if self.unicode else shown.encode("ascii", "replace").decode()

    def bar(self, share: float | None, width: int) -> str:
        """A bar of this width, full at 1."""
        cells = round(min(max(share or 0.0, 0.0), 1.0) * width)
        return self.full * cells + self.empty * (width - cells)

    def sparkline(self, values: Sequence[float | None], width: int) -> str:
        """The last values, one character each, from 0 to the highest of them."""
        shown = values[-width:]
        highest = max((value for value in shown if value is not None), default=0.0)
        top = len(self.spark) - 1
        return "".join(
            " "
            if value is None
            else self.spark[min(top, round(value / highest * top)) if highest > 0 else 0]
            for value in shown
        ).rjust(width)


UNICODE = Symbols("▁▂▃▄▅▆▇█", "█", "░", "-", "·", "…", "▼", "▲", unicode=True)
ASCII = Symbols("_.:-=+*#", "#", ".", "-", "|", "~", "v", "^", unicode=False)


def unicode_expected(environment: Mapping[str, str], encoding: str) -> bool:
    """Whether the terminal shows Unicode, as the locale says.

    Args:
        environment: LC_ALL, LC_CTYPE and LANG are read.
        encoding: that of the output.
    """
    if not encoding.lower().startswith("utf"):
        return False
    locale, language = environment.get("LC_CTYPE", ""), environment.get("LANG", "")
    # Python replaces the locale C by C.UTF-8 (PEP 538), also for the programs that it starts.
    if locale == "C.UTF-8" and language in ("C", "POSIX"):
        locale = language
    chosen = environment.get("LC_ALL") or locale or language
    return not chosen or "utf" in chosen.lower()


def rate(value: float) -> str:
    """Events per second."""
    if value == 0:
        return "0"
    if value < LEAST:
        return f"{value:.2g}" if value >= LEAST / TEN else "<0.001"
    return f"{value:,.0f}" if value >= HUNDRED else f"{value:.{1 if value >= TEN else 2}f}"


def share(value: float) -> str:
    """A ratio in percent: 0.26 %, 4.1 %, 98 %."""
    percent = value * 100
    if percent in (0, HUNDRED):
        return f"{percent:.0f} %"
    digits = 1 if TEN <= percent <= HUNDRED - 1 else 2
    return f"{min(max(percent, LEAST), MOST):.{digits}f} %"


def seconds(value: float) -> str:
    """A latency: 1.2 ms, 184 ms, 2.04 s."""
    if value >= 1:
        return f"{value:.2f} s" if value < TEN else f"{value:.1f} s"
    milliseconds = value * 1000
    return f"{milliseconds:.{0 if milliseconds >= TEN else 1}f} ms"


def age(value: float) -> str:
    """How long something has lasted: 12 s, 5 m, 3 h, 2 d."""
    for unit, name in ((DAY, "d"), (HOUR, "h"), (MINUTE, "m")):
        if value >= unit:
            return f"{value // unit:.0f} {name}"
    return f"{max(value, 0):.0f} s"


def size(value: float) -> str:
    """Bytes: 61 MB."""
    for unit, name in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if value >= unit:
            return f"{value / unit:.{1 if value < TEN * unit else 0}f} {name}"
    return f"{value:.0f} B"


def clock(moment: float, now: float) -> str:
    """A Unix time on this machine's clock; with the date if it is more than a day ago."""
    form = "%H:%M:%S" if now - moment < DAY else "%Y-%m-%d %H:%M"
    return time.strftime(form, time.localtime(moment))


def by_unit(unit: str, value: float) -> str:
    """A number in one of Grafana's units that the routes' table has."""
    return {"percentunit": share, "s": seconds}.get(unit, rate)(value)
