"""What the stack needs of the app, outside the app's own code: telemetry and a health check."""

from shelf import create_app

from gunicorn_flask_telemetry.flask_metrics import FlaskMetrics

app = create_app()
metrics = FlaskMetrics(app)


@app.get("/flask-health-check")
@metrics.do_not_track()
def health_check() -> str:
    """Answer the health check. It is no traffic, so it is not counted."""
    return "success"
