"""Files: upload, download, and a stream of events that says how many there are."""

import time
from collections.abc import Iterator

from flask import (
    Blueprint,
    Response,
    abort,
    current_app,
    g,
    redirect,
    render_template,
    request,
    send_file,
    stream_with_context,
    url_for,
)
from werkzeug.wrappers import Response as BaseResponse

from shelf.database import database

blueprint = Blueprint("files", __name__)

SECONDS_BETWEEN_EVENTS = 0.5
LONGEST_STREAM = 600  # seconds; the browser then connects again


@blueprint.get("/")
def index() -> str:
    """List the files. nginx caches this page for each session: Flask sends Vary: Cookie."""
    return render_template("index.html", files=database().execute("SELECT * FROM file"))


@blueprint.get("/about")
def about() -> str:
    """Say what this is. The same for every user, so nginx keeps it for long."""
    return render_template("about.html")


@blueprint.post("/files")
def upload() -> BaseResponse:
    """Keep a file, and show its page."""
    if g.user is None:
        return redirect(url_for("auth.login"))
    sent = request.files["file"]
    folder = current_app.config["DATA"] / "files"
    folder.mkdir(exist_ok=True)
    with database() as connection:
        number = connection.execute(
            "INSERT INTO file (name, size, owner) VALUES (?, 0, ?)", (sent.filename, g.user["id"])
        ).lastrowid
        sent.save(folder / str(number))
        size = (folder / str(number)).stat().st_size
        connection.execute("UPDATE file SET size = ? WHERE id = ?", (size, number))
    return redirect(url_for("files.download", number=number))


@blueprint.get("/files/<int:number>")
def download(number: int) -> Response:
    """Send a file."""
    kept = current_app.config["DATA"] / "files" / str(number)
    if not kept.is_file():
        abort(404)
    return send_file(kept, mimetype="application/octet-stream")


@blueprint.get("/events")
def events() -> Response:
    """Stream the number of files as server-sent events, for `seconds` at most."""
    seconds = min(request.args.get("seconds", LONGEST_STREAM, float), LONGEST_STREAM)

    def count() -> Iterator[str]:
        end = time.monotonic() + seconds
        while True:
            (files,) = database().execute("SELECT count(*) FROM file").fetchone()
            yield f"data: {files}\n\n"
            if time.monotonic() + SECONDS_BETWEEN_EVENTS > end:
                return
            time.sleep(SECONDS_BETWEEN_EVENTS)

    return Response(
        stream_with_context(count()),
        mimetype="text/event-stream",
        # nginx hands on each event at once, instead of collecting them in a buffer.
        headers={"X-Accel-Buffering": "no", "Cache-Control": "no-store"},
    )
