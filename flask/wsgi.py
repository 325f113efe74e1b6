"""WSGI entry: `gunicorn --config gunicorn.conf.py wsgi:app`, or `python wsgi.py` for debugging."""

from app import app

if __name__ == "__main__":
    app.run(port=8000, debug=True)
