"""The log of a failed service is shown in readable form."""

from __future__ import annotations

import json

from local.excerpt import excerpt, not_loaded


def line(message: str, **fields: str) -> str:
    return json.dumps({"level": "error", "message": message, **fields})


def test_only_the_reason_is_shown_if_the_app_did_not_load() -> None:
    why = (
        "The application did not load:\nTraceback (most recent call last):\n"
        "ModuleNotFoundError: No module named 'numpy'\n"
        "gunicorn ends: fix the application, then start again."
    )
    log = "\n".join([line("Booting worker"), why, line("Shutting down: Master"), why])
    assert not_loaded(log) == why
    assert [each.strip() for each in excerpt(log).splitlines()] == why.splitlines()
    assert not_loaded(line("Booting worker")) == ""


def test_an_exception_is_shown_unescaped() -> None:
    log = "\n".join([line("a"), line("It failed", exception="Traceback:\n  x = 1\nKeyError"), "b"])
    assert excerpt(log) == "  It failed\n  Traceback:\n    x = 1\n  KeyError"


def test_otherwise_the_last_messages_are_shown() -> None:
    log = "\n".join(["first", *map(str, range(8)), line("last"), "[1]"])
    assert excerpt(log) == "\n".join(f"  {each}" for each in [*range(8), "last", "[1]"])


def test_a_request_is_shown_with_its_answer() -> None:
    log = line("request", method="GET", path="/flask-health-check", status="404")
    assert excerpt(log) == "  GET /flask-health-check: status 404"
