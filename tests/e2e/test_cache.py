"""The cache as a client sees it. Each test has its own arguments, so its own cache entry."""

from __future__ import annotations

import concurrent.futures
import uuid

import requests

from tests.stacks import Stack, wait_until

LIFETIME = 30  # seconds a 200 is kept


def own_entry(stack: Stack, path: str = "/cache-me") -> str:
    """A URL that no other test uses."""
    return f"{stack.http}{path}?entry={uuid.uuid4().hex}"


def cache_status(url: str, **options: object) -> str | None:
    response = requests.get(url, timeout=20, **options)
    assert response.status_code == 200
    return response.headers.get("X-Cache-Status")


def flask_requests(stack: Stack, **labels: str) -> float:
    """How many requests for /cache-me Flask has answered."""
    return stack.total("flask-app", "flask_http_request_total", route="/cache-me", **labels)


def test_first_a_miss_then_hits(stack: Stack) -> None:
    url = own_entry(stack)
    assert [cache_status(url) for _ in range(3)] == ["MISS", "HIT", "HIT"]


def test_each_query_host_and_method_has_its_own_entry(stack: Stack) -> None:
    url = own_entry(stack)
    assert cache_status(url) == "MISS"
    assert cache_status(f"{url}&more=1") == "MISS"
    assert cache_status(url, headers={"Host": "other.example"}) == "MISS"
    assert cache_status(url, headers={"Host": "other.example:81"}) == "MISS"
    assert requests.head(url, timeout=20).headers["X-Cache-Status"] == "MISS"
    assert cache_status(url) == "HIT"


def test_only_cached_paths_have_a_cache_status(stack: Stack) -> None:
    assert cache_status(f"{stack.http}/") is None
    assert cache_status(f"{stack.http}/info") is None


def test_authorized_requests_bypass_the_cache(stack: Stack) -> None:
    url = own_entry(stack)
    secret = {"Authorization": "Basic dXNlcjpwYXNzd29yZA=="}
    assert cache_status(url, headers=secret) == "BYPASS"
    assert cache_status(url) == "MISS"
    assert cache_status(url, headers=secret) == "BYPASS"


def test_fifty_simultaneous_requests_for_a_new_entry_make_one_upstream_request(
    stack: Stack,
) -> None:
    url = own_entry(stack)
    before = flask_requests(stack)
    with concurrent.futures.ThreadPoolExecutor(50) as clients:
        statuses = list(clients.map(cache_status, [url] * 50))
    assert statuses.count("MISS") == 1
    assert statuses.count("HIT") == 49
    assert flask_requests(stack) == before + 1


def test_a_slow_fill_is_one_upstream_request(stack: Stack) -> None:
    """nginx lets all waiting requests pass after proxy_cache_lock_timeout, 5 s by default."""
    url = f"{own_entry(stack)}&sleep=7"
    before = flask_requests(stack)
    with concurrent.futures.ThreadPoolExecutor(10) as clients:
        statuses = list(clients.map(cache_status, [url] * 10))
    assert sorted(statuses) == ["HIT"] * 9 + ["MISS"]
    assert flask_requests(stack) == before + 1


def test_time_of_a_stale_answer_is_without_its_background_refresh(stack: Stack) -> None:
    """nginx holds the connection until the refresh has ended, and $request_time includes that."""
    seconds = 4
    url = f"{own_entry(stack)}&header=X-Accel-Expires=1&sleep={seconds}"

    def stale(name: str, **labels: str) -> float:
        name = f"nginx_route_request_duration_seconds_{name}"
        labels |= {"route": "/cache-me", "cache": "STALE"}
        return stack.total("nginx-access-exporter", name, **labels)

    counted, within = stale("count"), stale("bucket", le="2.5")
    assert cache_status(url) == "MISS"
    wait_until(lambda: cache_status(url) == "STALE", 10, "a stale answer")
    wait_until(lambda: stale("count") > counted, seconds + 10, "its line in the log")
    assert stale("bucket", le="2.5") - within == stale("count") - counted


def test_an_expired_entry_is_served_stale_and_revalidated_in_the_background(stack: Stack) -> None:
    url = own_entry(stack)
    assert cache_status(url) == "MISS"
    before = flask_requests(stack)
    unchanged = flask_requests(stack, status="304")
    expired = wait_until(
        lambda: (status := cache_status(url)) != "HIT" and status, LIFETIME + 10, "an expired entry"
    )
    assert expired == "STALE"
    wait_until(lambda: cache_status(url) == "HIT", 5, "the entry to be fresh again")
    assert flask_requests(stack) == before + 1
    assert flask_requests(stack, status="304") == unchanged + 1


def test_stale_answers_while_flask_is_down(stack: Stack) -> None:
    url = f"{own_entry(stack)}&header=X-Accel-Expires=1"
    assert cache_status(url) == "MISS"
    stack.stop("flask-app")
    try:
        assert requests.get(own_entry(stack), timeout=20).status_code in (502, 504)
        wait_until(lambda: cache_status(url) == "STALE", 10, "a stale answer")
        assert requests.get(f"{stack.http}/health-check", timeout=10).status_code == 200
    finally:
        stack.start("flask-app")
    wait_until(lambda: cache_status(own_entry(stack)) == "MISS", 10, "Flask to be asked again")


def test_responses_for_one_user_are_never_cached(stack: Stack) -> None:
    for header in ("Set-Cookie: user=1", "Cache-Control: private", "Cache-Control: no-store"):
        name, _, value = header.partition(": ")
        url = f"{own_entry(stack)}&{requests.compat.urlencode({'header': f'{name}={value}'})}"
        assert [cache_status(url) for _ in range(3)] == ["MISS"] * 3, header


def stack_purge(stack: Stack, *arguments: str) -> str:
    """What ./stack purge prints."""
    done = stack.command("purge", *arguments)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_purge_empties_the_cache_or_removes_the_entries_below_a_path(stack: Stack) -> None:
    run = uuid.uuid4().hex
    kept, purged = (
        f"{stack.http}/cache-me?a{run}",
        [f"{stack.http}/cache-me?b{run}{n}" for n in "12"],
    )
    for url in (kept, *purged):
        assert [cache_status(url) for _ in range(2)] == ["MISS", "HIT"]
    done = stack_purge(stack, f"/cache-me?b{run}")
    assert done.strip() == "2 entries removed from nginx's cache"
    assert [cache_status(url) for url in (kept, *purged)] == ["HIT", "MISS", "MISS"]
    assert "removed from nginx's cache" in stack_purge(stack)
    assert cache_status(kept) == "MISS"


def test_the_exporter_shows_how_full_the_cache_is(stack: Stack) -> None:
    cache_status(own_entry(stack))
    exporter = "nginx-access-exporter"
    zone = {"zone": "responses"}
    wait_until(lambda: stack.total(exporter, "nginx_cache_entries", **zone) >= 1, 60, "a scan")
    assert stack.total(exporter, "nginx_cache_size_bytes", **zone) >= 1
    assert stack.total(exporter, "nginx_cache_max_size_bytes", **zone) == 256 << 20
    assert stack.total(exporter, "nginx_cache_keys_capacity", **zone) == 80_000
