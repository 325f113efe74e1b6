"""The cache as a client sees it. Each test has its own arguments, so its own cache entry."""

from __future__ import annotations

import concurrent.futures
import time
import uuid

import pytest
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


@pytest.mark.parametrize("value", ["0", "Basic dXNlcjpwYXNzd29yZA=="])
def test_an_answer_to_an_authorized_request_is_not_kept(stack: Stack, value: str) -> None:
    """nginx takes "0" for empty where it decides about the cache."""
    url = own_entry(stack)
    secret = {"Authorization": value}
    assert [cache_status(url, headers=secret) for _ in range(2)] == ["BYPASS"] * 2
    assert cache_status(url) == "MISS"
    assert cache_status(url, headers=secret) == "BYPASS"


@pytest.mark.parametrize("body", [b"sent=1", [b"sent", b"=1"]], ids=["length", "chunks"])
def test_an_answer_to_a_body_is_not_kept(stack: Stack, body: bytes | list[bytes]) -> None:
    """The body is not in the key: it would change what others get."""
    url = own_entry(stack)

    def with_body() -> str | None:
        return cache_status(url, data=iter(body) if isinstance(body, list) else body)

    assert [with_body() for _ in range(2)] == ["BYPASS"] * 2
    assert [cache_status(url) for _ in range(2)] == ["MISS", "HIT"]
    assert with_body() == "BYPASS"
    assert cache_status(url, headers={"Content-Length": "0"}) == "HIT"


@pytest.mark.parametrize(
    "header",
    [
        *("X-Original-URL", "X-Rewrite-URL", "X-Script-Name"),
        *("X-Host", "X-Original-Host", "X-Forwarded-Server"),
        *("X-Scheme", "X-Forwarded-Scheme"),
        *("X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override"),
    ],
)
def test_the_app_does_not_see_what_frameworks_take_for_the_url_or_method(
    stack: Stack, header: str
) -> None:
    url = f"{own_entry(stack)}&show={header}"
    response = requests.get(url, headers={header: "DELETE"}, timeout=20)
    assert (response.headers["X-Cache-Status"], response.headers["X-Shown"]) == ("MISS", "")


def test_a_post_may_name_its_method(stack: Stack) -> None:
    override = {"X-HTTP-Method-Override": "PATCH"}
    url = f"{stack.http}/?show=X-HTTP-Method-Override"
    assert requests.post(url, headers=override, timeout=20).headers["X-Shown"] == "PATCH"


def test_a_range_of_a_missing_entry_is_cut_from_the_whole_answer(stack: Stack) -> None:
    url = f"{own_entry(stack)}&size=1000&show=Range&header=Accept-Ranges=bytes"
    part = requests.get(url, headers={"Range": "bytes=0-9", "Accept-Encoding": ""}, timeout=20)
    assert (part.status_code, len(part.content), part.headers["X-Shown"]) == (206, 10, "")
    whole = requests.get(url, timeout=20)
    assert (whole.headers["X-Cache-Status"], len(whole.content)) == ("HIT", 1000)


def test_vary_accept_encoding_does_not_split_the_cache(stack: Stack) -> None:
    """nginx keeps an entry for each spelling of a header that Vary names, and compresses itself."""
    url = f"{own_entry(stack)}&size=2000&header=Vary=Accept-Encoding"
    spellings = ["gzip", "gzip, br", "br;q=1.0, gzip;q=0.8", "identity", ""]
    got = [requests.get(url, headers={"Accept-Encoding": each}, timeout=20) for each in spellings]
    assert [each.headers["X-Cache-Status"] for each in got] == ["MISS"] + ["HIT"] * 4
    encodings = [each.headers.get("Content-Encoding") for each in got]
    assert encodings == ["gzip", "gzip", "gzip", None, None]
    assert {each.headers["Vary"] for each in got} == {"Accept-Encoding"}


def test_vary_cookie_makes_an_entry_for_each_cookie(stack: Stack) -> None:
    url = f"{own_entry(stack)}&header=Vary=Accept-Encoding,%20Cookie"
    statuses = [cache_status(url, headers={"Cookie": each}) for each in ("a=1", "a=2", "a=1")]
    assert statuses == ["MISS", "MISS", "HIT"]


LASTING = ("Cache-Control=max-age=60", "Expires=Thu,%2031%20Dec%202099%2023:59:59%20GMT")


@pytest.mark.parametrize("status", [400, 404, 500, 503])
@pytest.mark.parametrize("header", LASTING, ids=["max-age", "expires"])
def test_an_error_is_not_kept_for_the_time_that_the_app_gives_every_answer(
    stack: Stack, status: int, header: str
) -> None:
    url = f"{own_entry(stack)}&status={status}&header={header}"
    answers = [requests.get(url, timeout=20) for _ in range(2)]
    assert [each.status_code for each in answers] == [status] * 2
    assert [each.headers["X-Cache-Status"] for each in answers] == ["MISS"] * 2


def test_an_error_is_kept_for_the_time_that_the_app_gives_nginx(stack: Stack) -> None:
    url = f"{own_entry(stack)}&status=404&header=X-Accel-Expires=60"
    answers = [requests.get(url, timeout=20) for _ in range(2)]
    assert [each.headers["X-Cache-Status"] for each in answers] == ["MISS", "HIT"]


@pytest.mark.parametrize("status", [302, 403, 404])
def test_a_page_that_is_gone_is_soon_gone_from_the_cache(stack: Stack, status: int) -> None:
    """nginx goes on to serve an expired entry if its refresh gets an answer that it cannot keep."""
    later = time.time() + 3
    url = f"{own_entry(stack)}&header=X-Accel-Expires=1&then={status}&from={later}"
    assert requests.get(url, timeout=20).status_code == 200

    def gone() -> bool:
        return requests.get(url, timeout=20, allow_redirects=False).status_code == status

    wait_until(gone, 20, "the page's new status")


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
