"""The one line that the application needs: prometheus-flask-exporter, with cheaper default metrics.

The library's decorators, and the metrics made with them, work as the library documents. Of its
default metrics, this module counts the exceptions. gunicorn's hooks measure requests and durations
under the library's names, since the library would have Flask call three functions for each request.
"""

import time
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from urllib.parse import quote

from flask import Flask, Request, got_request_exception, request
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_flask_exporter import PrometheusMetrics

from gunicorn_flask_telemetry.recorder import METHODS, ROUTE_KEY
from gunicorn_flask_telemetry.shedding import (
    CLIENT_LEFT,
    SHED_KEY,
    queue_timeout,
    reason_to_shed,
)

# The route of a request that matches no URL rule: the answer is 404, or 405 if a rule has the path
# but not the method.
UNMATCHED = "unmatched"
EXCLUDED = "gunicorn_flask_telemetry_excluded"  # attribute of a view without metrics
Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]


class FlaskMetrics(PrometheusMetrics):
    """The metrics of a Flask application, by URL rule (label `route`)."""

    def __init__(
        self,
        app: Flask | None = None,
        *,
        excluded_paths: str | list[str] | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Measure `app`, or the application that `init_app` gets later.

        Args:
            app: the application.
            excluded_paths: regular expressions of paths that are not counted.
            registry: where the metrics are registered.
        """
        super().__init__(app, path=None, excluded_paths=excluded_paths, registry=registry)

    def init_app(self, app: Flask) -> None:
        """Measure `app`, and send each request's route in the header X-Route.

        Requests whose client has left, or that waited too long, do not reach the application.
        """
        super().init_app(app)
        app.wsgi_app = _Instrumented(app, self)

    # The library's decorators flag a request when its view runs. A shed request's view never runs.
    @staticmethod
    def do_not_track() -> Decorator:
        """Return the library's decorator, which excludes a view from the default metrics."""
        return _flagging(PrometheusMetrics.do_not_track())

    @staticmethod
    def exclude_all_metrics() -> Decorator:
        """Return the library's decorator, which excludes a view from all metrics."""
        return _flagging(PrometheusMetrics.exclude_all_metrics())

    def export_defaults(self, *_args: object, app: Flask, **_options: object) -> None:
        """Define the default metrics that gunicorn's hooks do not measure.

        As in the library, a second application with the same registry defines none.
        """
        try:
            self.info(
                "flask_exporter_info",
                "Information about the Prometheus Flask exporter",
                version=self.version,
            )
        except ValueError:
            return
        self._exceptions = Counter(
            "flask_http_request_exceptions_total",
            "Total number of HTTP requests which resulted in an exception",
            ("method", "status"),
            registry=self.registry,
        )
        got_request_exception.connect(self._count_exception, app)

    def note(self, environ: dict[str, Any]) -> str:
        """Note the request's route for the recorder, and return it.

        This must happen while Flask handles the request: it then removes it from the environ.
        """
        flask_request = environ.get("werkzeug.request")  # None if a middleware answered
        rule = flask_request.url_rule if flask_request else None
        route = _header_value(rule.rule) if rule else UNMATCHED
        environ[ROUTE_KEY] = route if self._is_counted(flask_request, environ) else None
        return route

    def _is_counted(self, flask_request: Request | None, environ: dict[str, Any]) -> bool:
        # The library's decorators set these attributes.
        if hasattr(flask_request, "prom_do_not_track") or hasattr(
            flask_request, "prom_exclude_all"
        ):
            return False
        if not self.excluded_paths:
            return True
        path = flask_request.path if flask_request else environ.get("PATH_INFO", "")
        return not any(pattern.match(path) for pattern in self.excluded_paths)

    def _count_exception(self, _app: Flask, **_extra: object) -> None:
        self.note(request.environ)
        method = request.method if request.method in METHODS else "OTHER"
        self._exceptions.labels(method, 500).inc()


class _Instrumented:
    """The WSGI application; adds X-Route to each response, also to the errors that Flask makes."""

    def __init__(self, app: Flask, metrics: FlaskMetrics) -> None:
        self._app = app
        self._wsgi_app = app.wsgi_app
        self._note = metrics.note
        self._queue_timeout = queue_timeout()
        self._loaded_at = time.monotonic()

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        environ[ROUTE_KEY] = UNMATCHED
        note = self._note

        def start(
            status: str, headers: Iterable[tuple[str, str]], exc_info: object = None
        ) -> object:
            route = note(environ)
            # A new list, since the application's may be a constant; and one X-Route, even if
            # another application with telemetry is mounted in this one.
            headers = [header for header in headers if header[0] != "X-Route"]
            if "HTTP_ACCEPT_ENCODING" not in environ:
                headers = _without_accept_encoding(headers)
            headers.append(("X-Route", route))
            return start_response(status, headers, exc_info)

        if reason := reason_to_shed(environ, self._queue_timeout, since=self._loaded_at):
            environ[SHED_KEY] = reason
            self._match_route(environ)
            return self._refuse(reason, start)
        return self._wsgi_app(environ, start)

    def _match_route(self, environ: dict[str, Any]) -> None:
        """Find the URL rule of a request, as Flask would before it runs the application's code."""
        context = self._app.request_context(environ)  # makes the request that note() looks at
        if context.url_adapter:
            context.match_request()
            view = self._app.view_functions.get(context.request.endpoint)
            if hasattr(view, EXCLUDED):
                context.request.prom_do_not_track = True

    def _refuse(self, reason: str, start_response: Callable[..., object]) -> Iterable[bytes]:
        if reason == CLIENT_LEFT:
            # nginx's status for this. Nobody receives it.
            start_response("499 Client Closed Request", [("Content-Length", "0")])
            return []
        body = b"The server is overloaded. Please try again later.\n"
        headers = [
            ("Content-Type", "text/plain"),
            ("Content-Length", str(len(body))),
            # By then, the requests that wait now are answered or refused.
            ("Retry-After", str(self._queue_timeout)),
        ]
        start_response("503 Service Unavailable", headers)
        return [body]


def _flagging(decorate: Decorator) -> Decorator:
    """Return a decorator that also flags the view."""

    def decorator(view: Callable[..., Any]) -> Callable[..., Any]:
        decorated = decorate(view)
        setattr(decorated, EXCLUDED, True)
        return decorated

    return decorator


def _without_accept_encoding(headers: list[tuple[str, str]]) -> list[tuple[str, str]]:
    """Return the headers, but Accept-Encoding is not in Vary.

    nginx asks for an answer that is not compressed, whatever its client accepts. With this name in
    Vary, its cache would still keep an entry for each spelling of the client's Accept-Encoding.
    """
    kept = []
    for name, value in headers:
        if name.lower() != "vary":
            kept.append((name, value))
            continue
        names = [each for each in map(str.strip, value.split(",")) if each]
        if others := [each for each in names if each.lower() != "accept-encoding"]:
            kept.append((name, ", ".join(others)))
    return kept


@cache
def _header_value(rule: str) -> str:
    return rule if rule.isascii() else quote(rule, safe="/<>:(),=\"'")
