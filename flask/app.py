"""The sample application. Put your own in its place; telemetry/ goes with any Flask app."""

import demo
from flask import Flask, Response, jsonify, request

from gunicorn_flask_telemetry.flask_metrics import FlaskMetrics

app = Flask(__name__)
metrics = FlaskMetrics(app)
if demo.enabled():
    app.register_blueprint(demo.demo)


@app.get("/")
def hello() -> str:
    """Greet."""
    return "Hello World!"


@app.get("/cache-me")
def cache_me() -> Response:
    """Answer with a text that nginx caches, and 304 to a client that has it already."""
    response = Response("nginx will cache this response", mimetype="text/plain")
    response.add_etag()
    return response.make_conditional(request)


@app.get("/info")
def info() -> Response:
    """Tell what arrived here of the client's request; null for a header that did not."""
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
    """Tell the health check that this application answers; not traffic, so not counted."""
    return "success"
