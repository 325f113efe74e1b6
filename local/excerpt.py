"""Finds the reason in the log of a service that failed, and makes it readable."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable

LINES = 10
# What gunicorn_flask_telemetry prints, as plain text, if the application can't be imported.
NOT_LOADED = re.compile(r"^The application did not load:$.*?^gunicorn ends: .*?$", re.M | re.S)


def excerpt(log: str) -> str:
    """Why the application did not load, else the first exception, else the last lines.

    Args:
        log: what the service printed since its start. JSON lines become plain text.
    """
    if found := not_loaded(log):
        return _indent(found.splitlines())
    entries = [_parse(line) for line in log.splitlines() if line.strip()]
    for message, exception in entries:
        if exception:
            return _indent([message, *exception.splitlines()])
    return _indent(message for message, _ in entries[-LINES:])


def not_loaded(log: str) -> str:
    """Why the application could not be imported; empty if it could, or was not tried yet."""
    found = NOT_LOADED.search(log)
    return found[0] if found else ""


def _parse(line: str) -> tuple[str, str]:
    """The message and the exception of a log line."""
    try:
        entry = json.loads(line)
        message = str(entry["message"])
        if message == "request":  # the telemetry's line for each request
            message = f"{entry['method']} {entry['path']}: status {entry['status']}"
        return message, str(entry.get("exception", ""))
    except (ValueError, KeyError, TypeError):
        return line, ""


def _indent(lines: Iterable[str]) -> str:
    return "\n".join(f"  {line}" for line in lines)
