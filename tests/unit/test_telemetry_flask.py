"""FlaskMetrics in a Flask application, with and without gunicorn."""

import contextlib
import socket
from collections.abc import Callable, Iterator

import pytest
from flask import Flask, Response
from prometheus_client import CollectorRegistry
from werkzeug.middleware.dispatcher import DispatcherMiddleware
from werkzeug.test import EnvironBuilder

from gunicorn_flask_telemetry.flask_metrics import FlaskMetrics
from gunicorn_flask_telemetry.recorder import ROUTE_KEY


@pytest.fixture
def app() -> Flask:
    app = Flask("example", static_folder=None)
    app.add_url_rule("/users/<int:number>", view_func=lambda number: f"{number}")
    app.add_url_rule("/gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n", endpoint="green", view_func=str)
    app.add_url_rule("/broken", endpoint="broken", view_func=lambda: 1 / 0)
    return app


def noted(app: Flask, path: str, **environ: object) -> tuple[str, str | None]:
    """Return the route in the response header and the one that the recorder would count."""
    environ, sent = EnvironBuilder(path).get_environ() | environ, {}
    app(environ, lambda _status, headers, *_: sent.update(headers))
    return sent["X-Route"], environ[ROUTE_KEY]


@pytest.mark.parametrize(
    ("path", "route"),
    [
        ("/users/7", "/users/<int:number>"),
        ("/users/nobody", "unmatched"),
        ("/gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n", "/gr%C3%BCn"),
        ("/broken", "/broken"),
    ],
)
def test_route_is_the_url_rule(app: Flask, path: str, route: str) -> None:
    FlaskMetrics(app, registry=CollectorRegistry())
    assert noted(app, path) == (route, route)


def test_unhandled_exception_has_its_route(app: Flask) -> None:
    FlaskMetrics(app, registry=CollectorRegistry())
    app.testing = True  # exceptions propagate to the server
    environ = EnvironBuilder("/broken").get_environ()
    with pytest.raises(ZeroDivisionError):
        app(environ, lambda *_: None)
    assert environ[ROUTE_KEY] == "/broken"


def test_excluded_paths_are_not_counted(app: Flask) -> None:
    FlaskMetrics(app, excluded_paths="/users", registry=CollectorRegistry())
    assert noted(app, "/users/7") == ("/users/<int:number>", None)
    assert noted(app, "/broken") == ("/broken", "/broken")


def test_responses_of_a_middleware_are_unmatched_or_excluded_by_path(app: Flask) -> None:
    app.wsgi_app = Response("from the middleware")
    FlaskMetrics(app, excluded_paths="/internal", registry=CollectorRegistry())
    assert noted(app, "/elsewhere") == ("unmatched", "unmatched")
    assert noted(app, "/internal/x") == ("unmatched", None)


@pytest.mark.parametrize("kind", [list, tuple])
def test_headers_of_the_application_do_not_change(app: Flask, kind: type) -> None:
    headers = kind([("Content-Type", "text/plain")])

    def ping(_environ: object, start_response: Callable[..., object]) -> list[bytes]:
        start_response("200 OK", headers, exc_info=None)
        return [b"pong"]

    app.wsgi_app = ping
    FlaskMetrics(app, registry=CollectorRegistry())
    for _ in range(3):
        assert noted(app, "/ping") == ("unmatched", "unmatched")
    assert headers == kind([("Content-Type", "text/plain")])


@pytest.mark.parametrize(
    ("vary", "without", "with_header"),
    [
        ("Accept-Encoding", None, "Accept-Encoding"),
        ("Cookie, accept-encoding", "Cookie", "Cookie, accept-encoding"),
        ("Accept", "Accept", "Accept"),
        ("*", "*", "*"),
    ],
)
def test_vary_names_accept_encoding_only_where_the_request_has_it(
    app: Flask, vary: str, without: str | None, with_header: str
) -> None:
    app.add_url_rule("/x", endpoint="x", view_func=lambda: Response("x", headers={"VARY": vary}))
    FlaskMetrics(app, registry=CollectorRegistry())
    for headers, expected in (({}, without), ({"Accept-Encoding": "gzip"}, with_header)):
        answer = app.test_client().get("/x", headers=headers)
        assert answer.headers.get("Vary") == expected


def test_application_in_another_sends_one_route(app: Flask) -> None:
    outer = Flask("outer")
    outer.wsgi_app = DispatcherMiddleware(outer.wsgi_app, {"/api": app})
    for each in (app, outer):
        FlaskMetrics(each, registry=CollectorRegistry())
    sent: list[tuple[str, str]] = []
    environ = EnvironBuilder("/api/users/7").get_environ()
    outer(environ, lambda _status, headers, *_: sent.extend(headers))
    routes = [value for name, value in sent if name == "X-Route"]
    assert routes == [environ[ROUTE_KEY]] == ["/users/<int:number>"]


@pytest.mark.parametrize("decorator", ["do_not_track", "exclude_all_metrics"])
def test_librarys_decorators_exclude_views(app: Flask, decorator: str) -> None:
    metrics = FlaskMetrics(app, registry=CollectorRegistry())
    app.add_url_rule(
        "/check", endpoint="check", view_func=getattr(metrics, decorator)()(lambda: "success")
    )
    assert noted(app, "/check") == ("/check", None)
    with client_that_left() as connection:  # so the view does not run
        left = {"gunicorn.socket": connection}
        assert noted(app, "/check", **left) == ("/check", None)
        assert noted(app, "/users/7", **left) == ("/users/<int:number>", "/users/<int:number>")


@contextlib.contextmanager
def client_that_left() -> Iterator[socket.socket]:
    """A server's connection that its client has closed."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        socket.create_connection(listening.getsockname()).close()
        with listening.accept()[0] as connection:
            assert connection.recv(1) == b""
            yield connection


def test_librarys_own_metrics_count(app: Flask) -> None:
    registry = CollectorRegistry()
    metrics = FlaskMetrics(app, registry=registry)
    view = metrics.counter("greetings", "How often it greeted")(lambda: "hello")
    app.add_url_rule("/greet", endpoint="greet", view_func=view)
    app.test_client().get("/greet")
    assert registry.get_sample_value("greetings_total") == 1


def test_exceptions_are_counted(app: Flask) -> None:
    registry = CollectorRegistry()
    FlaskMetrics(app, registry=registry)
    app.test_client().get("/broken")
    labels = {"method": "GET", "status": "500"}
    assert registry.get_sample_value("flask_http_request_exceptions_total", labels) == 1


def test_applications_made_twice_share_a_registry(app: Flask) -> None:
    registry = CollectorRegistry()
    FlaskMetrics(Flask("first"), registry=registry)
    later = FlaskMetrics(registry=registry)
    later.init_app(app)
    assert noted(app, "/users/7")[0] == "/users/<int:number>"
