"""Shelf: users sign in and share files. An example of an application that the stack runs."""

import os
from hashlib import file_digest
from pathlib import Path
from typing import Any

import humanize
from flask import Flask

from shelf import auth, database, files


def create_app() -> Flask:
    """Make the application, with its settings from the environment.

    Raises:
        KeyError: SECRET_KEY is not set.
    """
    app = Flask(__name__)
    app.config.from_mapping(
        SECRET_KEY=os.environ["SECRET_KEY"],  # signs the session cookies
        DATA=Path(os.environ.get("APP_DATA_DIR", app.instance_path)),
        SESSION_COOKIE_SAMESITE="Lax",
    )
    app.cli.add_command(database.migrate)
    app.teardown_appcontext(database.close)
    app.add_template_filter(humanize.naturalsize)
    app.url_defaults(_version_of_static_file)
    app.register_blueprint(auth.blueprint)
    app.register_blueprint(files.blueprint)
    return app


def _version_of_static_file(endpoint: str, values: dict[str, Any]) -> None:
    """Add a hash of the file to its URL: browsers keep static files for a year."""
    if endpoint == "static":
        with Path(__file__).with_name("static").joinpath(values["filename"]).open("rb") as file:
            values["v"] = file_digest(file, "sha256").hexdigest()[:12]
