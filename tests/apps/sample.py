"""The app that the tests run: the sample application's routes, whatever app is in flask/."""

import contextlib

from flask import Flask, Response, jsonify, request

from gunicorn_flask_telemetry.flask_metrics import FlaskMetrics

app = Flask(__name__)
metrics = FlaskMetrics(app)
with contextlib.suppress(ImportError, AttributeError):  # another app may come without it
    import demo

    if demo.enabled():
        app.register_blueprint(demo.demo)


@app.get("/")
def hello() -> str:
    """Return a greeting."""
    return "Hello World!"


@app.get("/cache-me")
def cache_me() -> Response:
    """Return a text that nginx caches, or 304 if the client has it already."""
    response = Response("nginx will cache this response", mimetype="text/plain")
    response.add_etag()
    return response.make_conditional(request)


@app.get("/info")
def info() -> Response:
    """Return what the application received from the client; null for a missing header."""
    headers = request.headers
    return jsonify(
        {
            "connecting_ip": headers.get("X-Real-IP", request.remote_addr),
            "proxy_ip": headers.get("X-Forwarded-For"),
            "host": headers.get("Host"),
            "user-agent": headers.get("User-Agent"),
            "request_id": headers.get("X-Request-ID"),
        }
    )


@app.get("/flask-health-check")
@metrics.do_not_track()
def health_check() -> str:
    """Answer the health check. It is not traffic, so it is not counted."""
    return "success"
