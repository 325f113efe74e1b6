"""What is counted of requests that do not go as requests should."""

import errno
from pathlib import Path
from types import SimpleNamespace

import pytest
from prometheus_client import CollectorRegistry
from prometheus_client.multiprocess import MultiProcessCollector

from gunicorn_flask_telemetry.histogram import HistogramFile
from gunicorn_flask_telemetry.recorder import _status


def open_files() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_many_histograms_take_few_files_and_count_all(tmp_path: Path) -> None:
    file = HistogramFile(tmp_path / "histogram_requests_1.db")
    before = open_files()
    histograms = [file.histogram("d", "Duration", {"route": f"/{n}"}) for n in range(300)]
    assert open_files() < before + 10
    for histogram in histograms:
        histogram.observe(0.02)
    registry = CollectorRegistry()
    MultiProcessCollector(registry, str(tmp_path))
    for n in (0, 1, 150, 299):
        assert registry.get_sample_value("d_count", {"route": f"/{n}"}) == 1
        bucket = {"route": f"/{n}", "le": "0.025"}
        assert registry.get_sample_value("d_bucket", bucket) == 1


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
def test_status_is_what_the_client_was_sent_or_would_have_been(
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
