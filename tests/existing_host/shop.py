"""Somebody's app, which knows nothing of this project."""

from flask import Flask

app = Flask(__name__)


@app.get("/")
def home() -> str:
    """The page that nobody caches."""
    return "shop"


@app.get("/products/<int:number>")
def product(number: int) -> str:
    """The page that nginx caches."""
    return f"product {number}"
