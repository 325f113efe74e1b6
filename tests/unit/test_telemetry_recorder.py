"""The status that the recorder counts for requests that fail."""

import errno
from types import SimpleNamespace

import pytest

from gunicorn_flask_telemetry.recorder import _status


@pytest.mark.parametrize(
    ("error", "status"),
    [
        (BrokenPipeError(errno.EPIPE, "the client has left"), 200),
        (ConnectionResetError(errno.ECONNRESET, "the client has left"), 200),
        (ConnectionError("requests raises such"), 500),
        (FileNotFoundError(errno.ENOENT, "the application's"), 500),
        (ValueError("the application's"), 500),
    ],
)
def test_status_is_the_one_that_the_client_got_or_would_have_got(
    error: Exception, status: int
) -> None:
    begun = SimpleNamespace(status="200 OK", status_code=200, headers_sent=False)
    sent = SimpleNamespace(status="200 OK", status_code=200, headers_sent=True)
    not_begun = SimpleNamespace(status=None, headers_sent=False)
    try:
        raise error
    except Exception:  # noqa: BLE001
        assert _status(begun) == status
        assert _status(sent) == 200
        assert _status(not_begun) == _status(None) == 500
