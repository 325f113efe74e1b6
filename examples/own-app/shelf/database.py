"""The SQLite database, in the folder that the stack keeps."""

import sqlite3

import click
from flask import current_app, g
from flask.cli import with_appcontext

SCHEMA = """
CREATE TABLE IF NOT EXISTS user (
    id INTEGER PRIMARY KEY, name TEXT UNIQUE NOT NULL, password TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS file (
    id INTEGER PRIMARY KEY, name TEXT NOT NULL, size INTEGER NOT NULL,
    owner INTEGER NOT NULL REFERENCES user (id)
);
"""


def database() -> sqlite3.Connection:
    """Return the request's connection."""
    if "database" not in g:
        g.database = sqlite3.connect(current_app.config["DATA"] / "shelf.sqlite")
        g.database.row_factory = sqlite3.Row
    return g.database


def close(_error: BaseException | None = None) -> None:
    """Close the request's connection."""
    if "database" in g:
        g.pop("database").close()


@click.command()
@with_appcontext
def migrate() -> None:
    """Bring the database to the present schema; safe to repeat."""
    database().executescript(SCHEMA)
    click.echo("the database has the present schema")
