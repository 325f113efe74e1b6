"""What several caches cost: hit ratio and requests to the app with N nginx, each with a cache.

A simulation of nginx's cache as nginx/templates configures it: an entry is fresh for a TTL; after
that it is answered stale, and one request refreshes it in the background; an entry that nobody
asked for in ten minutes is gone. Requests come at random times to pages of a Zipf distribution, and
each nginx gets the same share. tests/unit/test_caches.py compares it with two real nginx.

    python -m tests.bench.caches
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from itertools import accumulate

TTL_SECONDS = 30.0
INACTIVE_SECONDS = 600.0
PAGES = 1_000
SECONDS = 1_800
CACHES = (1, 2, 3, 5, 10)
RATES = (1, 10, 100, 1_000)  # requests a second

Request = tuple[float, int, int]  # seconds, page, number of the nginx


class Result:
    """How many requests were answered without a wait, and how many went to the app."""

    def __init__(self) -> None:
        self.requests = 0
        self.hits = 0
        self.to_app = 0

    @property
    def hit_ratio(self) -> float:
        return self.hits / self.requests

    @property
    def load(self) -> float:
        """Requests to the app for each request."""
        return self.to_app / self.requests


def simulate(requests: Iterable[Request], ttl: float) -> Result:
    """Count what the caches do with these requests, in order of time."""
    result = Result()
    expiry: dict[tuple[int, int], float] = {}
    asked: dict[tuple[int, int], float] = {}
    for now, page, cache in requests:
        key = page, cache
        result.requests += 1
        kept = now - asked.get(key, -INACTIVE_SECONDS) < INACTIVE_SECONDS
        result.hits += kept
        if not kept or now >= expiry[key]:
            result.to_app += 1
            expiry[key] = now + ttl
        asked[key] = now
    return result


def zipf(rate: float, seconds: float, pages: int, caches: int, seed: int = 1) -> list[Request]:
    """Requests at random times for pages whose popularity is 1/rank."""
    chance = random.Random(seed)  # noqa: S311
    count = round(rate * seconds)
    times = sorted(chance.uniform(0, seconds) for _ in range(count))
    weights = list(accumulate(1 / rank for rank in range(1, pages + 1)))
    chosen = chance.choices(range(pages), cum_weights=weights, k=count)
    return [(now, page, chance.randrange(caches)) for now, page in zip(times, chosen, strict=True)]


def main() -> None:
    """Print the table of docs/scaling.md."""
    print(f"| nginx |{''.join(f' {rate:,} requests/s |' for rate in RATES)}")
    print(f"| --- |{' --- |' * len(RATES)}")
    for caches in CACHES:
        cells = []
        for rate in RATES:
            found = simulate(zipf(rate, SECONDS, PAGES, caches), TTL_SECONDS)
            cells.append(f"{found.hit_ratio:.1%}, {found.to_app / SECONDS:.2f}/s")
        print(f"| {caches} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
