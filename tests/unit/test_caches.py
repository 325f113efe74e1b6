"""The simulation of several caches in tests/bench/caches.py agrees with two real nginx."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
import requests

from tests.bench.caches import simulate, zipf
from tests.replicas import proxy, serving

TTL = 2  # seconds, as nginx counts them: whole ones
WITHOUT_WAIT = ("HIT", "STALE", "UPDATING")


def test_simulation_agrees_with_two_nginx(tmp_path: Path) -> None:
    planned = zipf(rate=40, seconds=15, pages=60, caches=2)
    sent, hits = [], 0
    with (
        serving(1) as replicas,
        proxy(tmp_path / "a", replicas, NGINX_CACHE_TTL=f"{TTL}s") as first,
        proxy(tmp_path / "b", replicas, NGINX_CACHE_TTL=f"{TTL}s") as second,
        requests.Session() as session,
    ):
        began = time.monotonic()
        for at, page, number in planned:
            time.sleep(max(0, began + at - time.monotonic()))
            url = (first, second)[number].url
            # By the wall clock, as nginx decides when an entry has expired.
            sent.append((time.time() // 1, page, number))
            answer = session.get(f"{url}/cache-me?page={page}", timeout=10)
            hits += answer.headers["X-Cache-Status"] in WITHOUT_WAIT
        to_app = sum("/cache-me" in target for target in replicas[0].targets)
    # nginx takes an entry as fresh in the second in which it expires, too.
    simulated = simulate(sent, TTL + 1)
    assert simulated.hits == pytest.approx(hits, rel=0.05)
    assert simulated.to_app == pytest.approx(to_app, rel=0.05)
    alone = simulate([(at, page, 0) for at, page, _ in sent], TTL + 1)
    assert alone.to_app < 0.8 * to_app
