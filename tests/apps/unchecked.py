"""An app that lacks the health check."""

from flask import Flask

app = Flask(__name__)
