"""examples/own-app, an application of its own, in the stack: by variables and an override alone."""

from __future__ import annotations

import hashlib
import os
import re
import secrets
import time
from collections.abc import Iterator
from typing import Any

import pytest
import requests

from local.settings import ROOT, read_env_file
from tests.e2e.test_conservation import count, settled
from tests.e2e.test_dashboards import DASHBOARDS, over_time
from tests.stacks import KINDS, REACHABLE, ComposeStack, LocalStack, Stack, run, wait_until

EXAMPLE = ROOT / "examples" / "own-app"
SETTINGS = read_env_file("examples/own-app/settings.env")
# nginx sees the tests as this machine, or as a container network's gateway.
HERE = "127.0.0.0/8 10.0.0.0/8 172.16.0.0/12 192.168.0.0/16"
UPLOAD = 20_000_000
EXPORTER = "nginx-access-exporter"
# What waits for nobody: see docs/architecture.md.
HITS = {"HIT", "STALE", "UPDATING"}


@pytest.fixture(scope="module")
def stack(kind: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stack]:
    """The example's stack, whose database a one-off command has made."""
    folder = tmp_path_factory.mktemp("own-app")
    (folder / "app.env").write_text(f"SECRET_KEY={secrets.token_hex()}\n")
    stack = KINDS[kind](
        SETTINGS
        | {
            "APP_ENV_FILE": str(folder / "app.env"),
            "NGINX_TRUSTED_PROXIES": HERE,
            "WSGI_APP": "",
        }
    )
    if isinstance(stack, ComposeStack):
        files = [ROOT / name for name in SETTINGS["COMPOSE_FILE"].split(":")]
        stack.files = [*files, REACHABLE]
    try:
        assert "present schema" in app_command(stack, "flask", "--app", "wsgi", "migrate")
        stack.up()
        yield stack
    finally:
        stack.down()


def app_command(stack: Stack, *words: str) -> str:
    """Run a command of the app's by ./stack run; returns what it prints."""
    local = ["--local"] if isinstance(stack, LocalStack) else []
    return run([ROOT / "stack", "run", *local, *words], stack.environment)


def signed_in(stack: Stack, name: str) -> requests.Session:
    """A browser of a user who has just registered."""
    browser = requests.Session()
    form = {"name": name, "password": "correct horse"}
    answer = browser.post(f"{stack.http}/auth/register", data=form, timeout=30)
    assert f"Signed in as {name}" in answer.text
    return browser


def user_of(page: requests.Response) -> str | None:
    """Whom the page is for."""
    found = re.search("Signed in as (.+)[.]<", page.text)
    return found[1] if found else None


def test_a_command_that_does_not_exist_is_named(stack: Stack) -> None:
    with pytest.raises(AssertionError, match=r"no-such-command.*(no such|not found)"):
        app_command(stack, "no-such-command")


def test_login_sets_a_cookie_and_redirects_within_the_site(stack: Stack) -> None:
    form = {"name": "carol", "password": "correct horse"}
    browser = signed_in(stack, "carol")
    assert user_of(browser.post(f"{stack.http}/auth/logout", timeout=30)) is None
    wrong = browser.post(
        f"{stack.http}/auth/login", data=form | {"password": "battery"}, timeout=30
    )
    assert "Name or password is wrong" in wrong.text
    answer = browser.post(f"{stack.http}/auth/login", data=form, allow_redirects=False, timeout=30)
    assert (answer.status_code, answer.headers["Location"]) == (302, "/")
    assert re.match("session=.+; HttpOnly; Path=/; SameSite=Lax", answer.headers["Set-Cookie"])
    assert user_of(browser.get(stack.http, timeout=30)) == "carol"


def test_a_cached_page_is_not_shared_between_users(stack: Stack) -> None:
    alice, bob, nobody = signed_in(stack, "alice"), signed_in(stack, "bob"), requests.Session()
    owners = {alice: "alice", bob: "bob", nobody: None}
    for browser in list(owners) * 2:
        browser.get(stack.http, timeout=30)
    for browser, name in owners.items():
        page = browser.get(stack.http, timeout=30)
        assert user_of(page) == name
        assert page.headers["X-Cache-Status"] in HITS
    # A page that no cookie changes has one entry for all.
    assert requests.get(f"{stack.http}/about", timeout=30).ok
    assert alice.get(f"{stack.http}/about", timeout=30).headers["X-Cache-Status"] == "HIT"


def test_each_cached_path_has_a_lifetime_of_its_own(stack: Stack) -> None:
    def cache_status(path: str) -> str:
        return requests.get(f"{stack.http}{path}", timeout=30).headers["X-Cache-Status"]

    cache_status("/about")
    wait_until(lambda: cache_status("/") == "STALE", 30, "an entry to expire after 5 s")
    assert cache_status("/about") == "HIT"


def test_20_mb_are_uploaded_and_kept_and_more_is_refused(stack: Stack) -> None:
    content = os.urandom(UPLOAD)
    browser = signed_in(stack, "dave")
    answer = browser.post(f"{stack.http}/files", files={"file": ("d.bin", content)}, timeout=120)
    assert [each.status_code for each in answer.history] == [302]
    assert hashlib.sha256(answer.content).digest() == hashlib.sha256(content).digest()
    refused = browser.post(
        f"{stack.http}/files", files={"file": ("d.bin", content + bytes(2 << 20))}, timeout=120
    )
    assert refused.status_code == 413
    # The data outlives the process that wrote it.
    stack.restart("flask-app")
    kept = wait_until(
        lambda: (got := browser.get(answer.url, timeout=30)).ok and got, 60, "the app to be back"
    )
    assert kept.content == content
    assert "d.bin" in browser.get(f"{stack.http}/?new", timeout=30).text


def test_events_arrive_while_the_app_still_streams(stack: Stack) -> None:
    with requests.get(f"{stack.http}/events?seconds=10", stream=True, timeout=30) as answer:
        assert answer.headers["Content-Type"].startswith("text/event-stream")
        lines = answer.iter_lines()
        assert re.fullmatch(rb"data: \d+", next(lines))
        assert stack.total("flask-app", "gunicorn_worker_requests_in_flight") >= 1
        assert len([line for line in lines if line]) > 10


def test_static_files_come_from_nginx_for_a_year(stack: Stack) -> None:
    page = requests.get(stack.http, timeout=30).text
    path = re.search(r'href="(/static/style\.css\?v=[0-9a-f]{12})"', page)[1]
    settled(stack)  # the request for the page
    before = stack.total("flask-app", "flask_http_request_total")
    answer = requests.get(stack.http + path, timeout=30)
    assert answer.content == (ROOT / SETTINGS["APP_STATIC_DIR"] / "style.css").read_bytes()
    assert answer.headers["Cache-Control"] == "max-age=31536000"
    assert "X-Cache-Status" not in answer.headers
    settled(stack)
    assert stack.total("flask-app", "flask_http_request_total") == before
    assert requests.get(f"{stack.http}/static/none.css", timeout=30).status_code == 404


def test_static_files_have_a_route_and_no_miss_ratio(stack: Stack) -> None:
    settled(stack)  # the requests of other tests
    counted = stack.total(EXPORTER, "nginx_route_requests_total", route="static")
    assert requests.get(f"{stack.http}/static/style.css", timeout=30).ok
    wait_until(
        lambda: (
            stack.total(EXPORTER, "nginx_route_requests_total", route="static", cache="NONE")
            == counted + 1
        ),
        30,
        "the request for a static file in nginx's metrics",
    )
    recorded = 'route:nginx_requests:rate5m{route="static"} > 0'
    wait_until(
        lambda: (
            stack.query(f"timestamp({recorded})")
            and stack.query("route:nginx_cache_miss:ratio_rate5m")
        ),
        60,
        "the recorded rates of static files, and the miss ratio of a cached route",
    )
    assert stack.query('route:nginx_cache_miss:ratio_rate5m{route="static"}') == []


def test_a_trusted_proxy_names_the_client_and_its_scheme(stack: Stack) -> None:
    sent = {"X-Forwarded-Proto": "https", "X-Forwarded-For": "203.0.113.9", "Host": "shelf.example"}
    page = requests.get(f"{stack.http}/auth/login", headers=sent, timeout=30).text
    assert '<link rel="canonical" href="https://shelf.example/auth/login">' in page
    wait_until(
        lambda: '"remote_addr":"203.0.113.9"' in stack.logs("nginx-proxy"), 30, "nginx's log"
    )


def test_the_version_is_a_metric(stack: Stack) -> None:
    wait_until(
        lambda: [each["metric"]["version"] for each in stack.query("flask_app_info")],
        30,
        "the version in Prometheus",
    )
    assert stack.total("flask-app", "flask_app_info", version=SETTINGS["APP_VERSION"]) == 1


def test_counts_of_clients_nginx_and_flask_are_identical(stack: Stack) -> None:
    """By route, too; /about is nginx's own after its first answer."""
    requests.get(f"{stack.http}/about", timeout=30)
    routes = ("/auth/login", "/events", "/files/<int:number>")
    before, by_route = settled(stack), {route: of_route(stack, route) for route in routes}
    with requests.Session() as browser:
        paths = ["/auth/login"] * 20 + ["/events?seconds=0"] * 10 + ["/files/999999"] * 5
        for path in paths + ["/about"] * 30 + ["/static/style.css"] * 15:
            browser.get(stack.http + path, timeout=30)
    wait_until(lambda: count(stack).since(before).nginx == 80, 60, "nginx's count")
    counted = settled(stack).since(before)
    assert (counted.nginx, counted.upstream, counted.flask) == (80, 35, 35)
    grown = {
        route: tuple(map(int.__sub__, of_route(stack, route), by_route[route])) for route in routes
    }
    assert grown == dict(zip(routes, ((20, 20), (10, 10), (5, 5)), strict=True))


def of_route(stack: Stack, route: str) -> tuple[int, int]:
    """How many requests nginx and Flask have counted."""
    nginx = stack.total(EXPORTER, "nginx_route_requests_total", route=route)
    return int(nginx), int(stack.total("flask-app", "flask_http_request_total", route=route))


def test_a_new_version_is_annotated_once_where_it_begins_to_run(stack: Stack) -> None:
    (annotation,) = (
        each
        for each in DASHBOARDS["stack-overview"]["annotations"]["list"]
        if each["name"] == "Versions"
    )

    def annotated() -> dict[str, list[Any]]:
        now = time.time()
        found = over_time(stack, annotation["target"]["expr"], now - 1800, now)
        return {each["metric"]["version"]: each["values"] for each in found}

    old, new = SETTINGS["APP_VERSION"], "1.1.0"
    wait_until(lambda: list(annotated()) == [old], 30, "the annotation of the first version")
    began = time.time()
    stack.settings["APP_VERSION"] = new
    if isinstance(stack, LocalStack):
        run([ROOT / "stack", "down"], stack.environment)
    stack.up()
    wait_until(lambda: set(annotated()) == {old, new}, 60, "the annotation of the new version")
    # Seen again after a restart, the version is not new: wait for scrapes after it.
    stack.restart("flask-app")
    restarted = time.time()
    wait_until(
        lambda: stack.query(f"timestamp(flask_app_info{{version='{new}'}}) > {restarted}"),
        60,
        "a scrape",
    )
    assert {version: len(values) for version, values in annotated().items()} == {old: 1, new: 1}
    assert annotated()[new][0][0] > began


def test_the_commands_of_the_examples_readme_start_it() -> None:
    (commands,) = re.findall(r"^```sh\n(.*?)^```", (EXAMPLE / "README.md").read_text(), re.M | re.S)
    stack = LocalStack({"WSGI_APP": ""})
    secret = EXAMPLE / "app.env"
    kept = secret.read_text() if secret.exists() else None
    try:
        # Without an engine: Grafana's image may be missing.
        environment = stack.environment | {"DOCKER_HOST": "unix:///no/engine"}
        assert "present schema" in run(["bash", "-ec", commands], environment)
        signed_in(stack, "erin")
    finally:
        stack.down()
        if kept is None:
            secret.unlink(missing_ok=True)
        else:
            secret.write_text(kept)
