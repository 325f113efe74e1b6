"""gunicorn's settings, each from an environment variable with a default.

`./stack up` calls `read` before it starts anything, to report mistakes early. So this module uses
only the standard library. An empty variable counts as unset.
"""

from collections.abc import Collection, Mapping
from typing import Any

# keepalive_timeout in nginx/templates/flask-app.conf.template. nginx must be the one that closes
# an idle connection: gunicorn could close it at the moment when nginx sends a request. (A worker
# that is stopping closes idle connections after 2 s, whatever its settings.)
NGINX_KEEPALIVE = 1
# Seconds by which gunicorn gives up before nginx does, and before it is killed while it stops. So
# its log can say why.
MARGIN = 5
HIGHEST = 2**31 - 1


def read(environ: Mapping[str, str]) -> tuple[dict[str, Any], list[str]]:
    """Read the settings.

    Args:
        environ: the environment variables.

    Returns:
        gunicorn's settings by gunicorn's own names, times in seconds; and a message for each
        variable that is not valid. In the settings, such a variable has its default.
    """
    variables = _Variables(environ)
    return _settings(variables), variables.problems


class _Variables:
    """Reads variables, and collects a message for each that is not valid."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        self._environ = environ
        self.problems: list[str] = []

    def text(self, name: str, default: str) -> str:
        return self._environ.get(name) or default

    def choice(self, name: str, default: str, allowed: Collection[str]) -> str:
        value = self.text(name, default)
        if value in allowed:
            return value
        self.problems.append(f"{name}={value!r}: must be one of {', '.join(allowed)}")
        return default

    def number(
        self, name: str, default: int, least: int, most: int = HIGHEST, reason: str = ""
    ) -> int:
        """Return a whole number; `reason` explains the limits in the message."""
        value = self.text(name, str(default))
        if value.isascii() and value.isdigit() and least <= int(value) <= most:
            return int(value)
        self.problems.append(
            f"{name}={value!r}: must be a whole number from {least} to {most}{reason}"
        )
        return default


def _settings(variables: _Variables) -> dict[str, Any]:
    settings: dict[str, Any] = {
        "wsgi_app": variables.text("WSGI_APP", "wsgi:app"),
        "bind": variables.text("GUNICORN_BIND", "0.0.0.0:8000"),
        "workers": variables.number("GUNICORN_WORKERS", 3, least=1, most=64),
        "backlog": variables.number("GUNICORN_BACKLOG", 2048, least=1),
        "keepalive": _keepalive(variables),
        "loglevel": variables.choice(
            "GUNICORN_LOG_LEVEL", "info", ("debug", "info", "warning", "error")
        ),
    }
    preload = variables.choice("GUNICORN_PRELOAD_APP", "false", ("true", "false"))
    settings["preload_app"] = preload == "true"
    variables.choice("FLASK_DEMO", "false", ("true", "false"))  # demo.py reads it
    max_requests = variables.number("GUNICORN_MAX_REQUESTS", 0, least=0)  # 0: no recycling
    settings["max_requests"] = max_requests
    settings["max_requests_jitter"] = variables.number(
        "GUNICORN_MAX_REQUESTS_JITTER", max_requests // 10, least=0
    )
    worker_class = variables.choice("GUNICORN_WORKER_CLASS", "gthread", ("gthread", "sync"))
    threads = variables.number("GUNICORN_THREADS", 4, least=1)
    if worker_class == "gthread":
        # gunicorn_workers.py describes the faults of the stock class.
        settings["worker_class"] = "gunicorn_workers.FreeThreadWorker"
        settings["threads"] = threads
        # gunicorn keeps as many idle connections open as this exceeds the threads. More of them
        # would save no time, and send more requests to a worker whose threads are all busy.
        settings["worker_connections"] = threads + max(1, threads // 2)
    else:
        settings["worker_class"] = worker_class  # with `threads`, gunicorn would take gthread
    return settings | _timeouts(variables, worker_class)


def _timeouts(variables: _Variables, worker_class: str) -> dict[str, Any]:
    # nginx waits this long for an answer. Compose and supervisor give nginx and gunicorn as long to
    # stop, and then kill them.
    limit = variables.number("FLASK_APP_TIMEOUT", 65, least=2 * MARGIN)
    most = limit - MARGIN
    reason = f" (FLASK_APP_TIMEOUT={limit} less {MARGIN}); to allow more, raise FLASK_APP_TIMEOUT"
    # A gthread worker times out only if the whole process hangs, however long its requests take.
    timeout = most if worker_class == "sync" else min(60, most)
    # Most people leave after about 10 s. A request that waited for half of that can still be
    # answered in time; the work for one that waited longer would be for nobody.
    queue_timeout = variables.number("GUNICORN_QUEUE_TIMEOUT", 5, 0, most, reason)
    return {
        # For the telemetry, which reads its settings from the environment.
        "raw_env": [
            f"GUNICORN_QUEUE_TIMEOUT={queue_timeout}",
            f"GUNICORN_PROXY_TIMEOUT={limit}",
        ],
        "timeout": variables.number("GUNICORN_TIMEOUT", timeout, 1, most, reason),
        "graceful_timeout": variables.number(
            "GUNICORN_GRACEFUL_TIMEOUT", min(30, most), 1, most, reason
        ),
    }


def _keepalive(variables: _Variables) -> int:
    if variables.text("GUNICORN_KEEPALIVE", "") == "0":  # no keep-alive
        return 0
    reason = (
        f", or 0 for no keep-alive: nginx keeps idle connections for {NGINX_KEEPALIVE} s, and must "
        "not send a request on one that gunicorn closes"
    )
    return variables.number("GUNICORN_KEEPALIVE", 75, least=NGINX_KEEPALIVE + 1, reason=reason)
