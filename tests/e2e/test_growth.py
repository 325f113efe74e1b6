"""The formula of docs/scaling.md says how many series a stack has."""

from __future__ import annotations

import requests

from tests.bench.growth import OF_TARGET, sizes
from tests.stacks import Stack, wait_until

WITHIN = 0.1


def scraped(stack: Stack, jobs: str) -> float:
    """The series of the targets of these jobs."""
    query = f'sum(scrape_samples_scraped{{job=~"{jobs}"}} + {OF_TARGET})'
    return stack.query(query)[0]["value"]


def test_formula_is_within_a_tenth_of_the_series(stack: Stack) -> None:
    for path in ("/", "/info", "/cache-me", "/cache-me", "/missing", "/?status=500"):
        requests.get(stack.http + path, timeout=10)

    def agree() -> bool:
        app, unit = sizes(stack)
        return (
            abs(scraped(stack, "flask-app") / app - 1) < WITHIN
            and abs(scraped(stack, "nginx-.+") / unit - 1) < WITHIN
        )

    wait_until(agree, 60, "as many series as the formula says")
