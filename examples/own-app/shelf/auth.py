"""Users: registration, and login with a session cookie."""

import sqlite3

from flask import Blueprint, flash, g, redirect, render_template, request, session, url_for
from werkzeug.security import check_password_hash, generate_password_hash
from werkzeug.wrappers import Response

from shelf.database import database

blueprint = Blueprint("auth", __name__, url_prefix="/auth")


@blueprint.before_app_request
def load_user() -> None:
    """Load the user of the session, if there is one and the page is a user's business."""
    g.user = None
    if request.endpoint not in (None, "static", "health_check", "files.about"):
        found = "SELECT id, name FROM user WHERE id = ?"
        g.user = database().execute(found, (session.get("user"),)).fetchone()


@blueprint.get("/login")
def login() -> str:
    """Show the form for names and passwords."""
    return render_template("login.html")


@blueprint.post("/register")
def register() -> Response:
    """Make a user, and sign in."""
    name, password = request.form["name"], request.form["password"]
    try:
        with database() as connection:
            made = connection.execute(
                "INSERT INTO user (name, password) VALUES (?, ?)",
                (name, generate_password_hash(password)),
            )
    except sqlite3.IntegrityError:
        flash(f"The name {name} is taken.")
        return redirect(url_for("auth.login"))
    return _sign_in(made.lastrowid)


@blueprint.post("/login")
def sign_in() -> Response:
    """Sign in, if the password is right."""
    user = (
        database()
        .execute("SELECT id, password FROM user WHERE name = ?", (request.form["name"],))
        .fetchone()
    )
    if user is None or not check_password_hash(user["password"], request.form["password"]):
        flash("Name or password is wrong.")
        return redirect(url_for("auth.login"))
    return _sign_in(user["id"])


@blueprint.post("/logout")
def sign_out() -> Response:
    """Forget the session."""
    session.clear()
    return redirect(url_for("files.index"))


def _sign_in(user: int | None) -> Response:
    session.clear()
    session["user"] = user
    return redirect(url_for("files.index"))
