"""Conservation: no request is counted twice or lost between the client, nginx and Flask."""

from __future__ import annotations

import dataclasses
import uuid

import requests

from tests.stacks import Stack, settle, wait_until


@dataclasses.dataclass(frozen=True)
class Counts:
    """What nginx and Flask have counted so far."""

    nginx: float
    upstream: float
    refreshed: float
    flask: float

    def since(self, other: Counts) -> Counts:
        """How much was counted after the other was taken."""
        pairs = zip(dataclasses.astuple(self), dataclasses.astuple(other), strict=True)
        return Counts(*(mine - theirs for mine, theirs in pairs))


def count(stack: Stack) -> Counts:
    exporter = "nginx-access-exporter"
    return Counts(
        nginx=stack.total(exporter, "nginx_route_requests_total"),
        upstream=stack.total(exporter, "nginx_route_upstream_attempts_total"),
        # nginx answers with the stale entry, and refreshes it by a subrequest that it does not log.
        refreshed=stack.total(exporter, "nginx_route_requests_total", cache="STALE"),
        flask=stack.total("flask-app", "flask_http_request_total"),
    )


def settled(stack: Stack) -> Counts:
    """The counts, once nginx has written its buffer (within 1 s) and they no longer change."""
    return settle(lambda: count(stack), 2, 30, "the counts to settle")


def test_requests_are_conserved_to_the_last_one(stack: Stack) -> None:
    run = uuid.uuid4().hex
    cached = [f"/cache-me?run={run}&n={n}" for n in range(20)]
    short_lived = [f"/cache-me?run={run}&s={n}&header=X-Accel-Expires=1" for n in range(10)]
    uncached = ["/", "/info", f"/{run}", "/?status=500", "/?status=404"] * 20

    before = settled(stack)
    with requests.Session() as client:

        def ask(paths: list[str]) -> list[str | None]:
            answers = [client.get(stack.http + path, timeout=10) for path in paths]
            return [answer.headers.get("X-Cache-Status") for answer in answers]

        assert ask(cached + short_lived) == ["MISS"] * 30
        assert ask(cached * 5) == ["HIT"] * 100
        assert ask(uncached) == [None] * 100
        # The youngest entry expires last. Until then it is a hit, and Flask gets no request.
        hits = 0
        while (status := ask(short_lived[-1:])[0]) == "HIT":
            hits += 1
        assert [status, *ask(short_lived[:-1])] == ["STALE"] * 10
    expected = Counts(nginx=240 + hits, upstream=130, refreshed=10, flask=140)
    wait_until(lambda: count(stack).since(before) == expected, 60, f"the counts to be {expected}")
    assert settled(stack).since(before) == expected
