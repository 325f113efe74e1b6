"""The one line in the application: prometheus-flask-exporter, with its defaults measured cheaper.

The library's decorators and the metrics made with them work as documented there. Of its default
metrics it counts the exceptions; requests and durations, under its names, are measured in
gunicorn's hooks instead of in three functions that Flask calls for every request.
"""

from collections.abc import Callable, Iterable
from functools import cache
from typing import Any
from urllib.parse import quote

from flask import Flask, Request, got_request_exception, request
from prometheus_client import REGISTRY, CollectorRegistry, Counter
from prometheus_flask_exporter import PrometheusMetrics

from gunicorn_flask_telemetry.recorder import METHODS, ROUTE_KEY

UNMATCHED = "unmatched"


class FlaskMetrics(PrometheusMetrics):
    """Metrics of a Flask application, grouped by URL rule in the label `route`."""

    def __init__(
        self,
        app: Flask | None = None,
        *,
        excluded_paths: str | list[str] | None = None,
        registry: CollectorRegistry = REGISTRY,
    ) -> None:
        """Measure `app`, or later what is given to `init_app`.

        Args:
            app: the application.
            excluded_paths: regular expressions of paths that are not counted.
            registry: where the metrics are registered.
        """
        super().__init__(app, path=None, excluded_paths=excluded_paths, registry=registry)

    def init_app(self, app: Flask) -> None:
        """Measure `app`, and send each request's route in the header X-Route."""
        super().init_app(app)
        app.wsgi_app = _Instrumented(app.wsgi_app, self)

    def export_defaults(self, *_args: object, app: Flask, **_options: object) -> None:
        """Define those of the default metrics that are not the recorder's.

        As in the library, a second application with the same registry has none of them.
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
        """Note for the recorder which route took the request, and return it.

        Now, since Flask takes its request out of the environ before it returns.
        """
        flask_request = environ.get("werkzeug.request")  # none where a middleware answered
        rule = flask_request.url_rule if flask_request else None
        route = _header_value(rule.rule) if rule else UNMATCHED
        environ[ROUTE_KEY] = route if self._is_counted(flask_request, environ) else None
        return route

    def _is_counted(self, flask_request: Request | None, environ: dict[str, Any]) -> bool:
        # Set by the library's decorators.
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
    """The WSGI application, sending X-Route also with the errors that Flask answers itself."""

    def __init__(self, wsgi_app: Callable[..., Iterable[bytes]], metrics: FlaskMetrics) -> None:
        self._wsgi_app = wsgi_app
        self._note = metrics.note

    def __call__(
        self, environ: dict[str, Any], start_response: Callable[..., object]
    ) -> Iterable[bytes]:
        environ[ROUTE_KEY] = UNMATCHED
        note = self._note

        def start(
            status: str, headers: Iterable[tuple[str, str]], exc_info: object = None
        ) -> object:
            route = note(environ)
            # A list of our own: the application's may be a constant. And one header, not a second
            # one beside that of an application mounted in this one.
            headers = [header for header in headers if header[0] != "X-Route"]
            headers.append(("X-Route", route))
            return start_response(status, headers, exc_info)

        return self._wsgi_app(environ, start)


@cache
def _header_value(rule: str) -> str:
    return rule if rule.isascii() else quote(rule, safe="/<>:(),=\"'")
