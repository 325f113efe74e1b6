"""The expiry of certificates, as openssl makes them and a real server serves them."""

from __future__ import annotations

import ssl
import subprocess
import threading
from collections.abc import Iterator
from datetime import datetime
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import pytest

from nginx_access_exporter import certificate
from nginx_access_exporter.certificate import CertificateCollector, expiry
from tests.certificates import make_certificate


def openssls_expiry(path: Path) -> float:
    command = ["openssl", "x509", "-enddate", "-noout", "-in", path]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    text = done.stdout.strip().removeprefix("notAfter=").replace("GMT", "+0000")
    return datetime.strptime(text, "%b %d %H:%M:%S %Y %z").timestamp()


@pytest.mark.parametrize("days", [1, 90, 36500])  # the last one ends after 2049: another format
@pytest.mark.parametrize("key", ["rsa:2048", "ec"])
def test_the_expiry_is_the_one_that_openssl_prints(tmp_path: Path, days: int, key: str) -> None:
    path = make_certificate(tmp_path, days, key)
    der = ssl.PEM_cert_to_DER_cert(path.read_text())
    assert expiry(der) == openssls_expiry(path)


@pytest.mark.parametrize("size", [0, 1, 3, 40, 100])
def test_what_is_no_certificate_is_an_error(tmp_path: Path, size: int) -> None:
    der = ssl.PEM_cert_to_DER_cert(make_certificate(tmp_path, 1).read_text())
    for text in (der[:size], bytes(size), b"\x30\x03\x02\x01\x00" * size):
        with pytest.raises((ValueError, LookupError)):
            expiry(text)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[HTTPServer]:
    """Serves TLS with the certificate in the folder."""
    path = make_certificate(tmp_path, 30)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(path, path.with_name("privkey.pem"))
    with HTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler) as running:
        running.socket = context.wrap_socket(running.socket, server_side=True)
        running.context = context
        threading.Thread(target=running.serve_forever, args=[0.05], daemon=True).start()
        yield running
        running.shutdown()


def exported(collector: CertificateCollector) -> list[float]:
    return [sample.value for metric in collector.collect() for sample in metric.samples]


def test_the_served_certificate_counts_and_is_asked_for_once_a_minute(
    server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    collector = CertificateCollector(("127.0.0.1", server.server_port))
    path = tmp_path / "fullchain.pem"
    first = openssls_expiry(path)
    assert exported(collector) == [first]
    # A renewed file counts once it is served.
    second = openssls_expiry(make_certificate(tmp_path, 60))
    monkeypatch.setattr(certificate, "SECONDS_BETWEEN_LOOKS", 0)
    assert exported(CertificateCollector(("127.0.0.1", server.server_port))) == [first]
    server.context.load_cert_chain(path, path.with_name("privkey.pem"))
    assert exported(collector) == [first]
    assert exported(CertificateCollector(("127.0.0.1", server.server_port))) == [second]


def test_without_an_answer_the_last_expiry_stays(
    server: HTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(certificate, "SECONDS_BETWEEN_LOOKS", 0)
    collector = CertificateCollector(("127.0.0.1", server.server_port))
    known = [openssls_expiry(tmp_path / "fullchain.pem")]
    assert exported(collector) == known
    server.shutdown()
    server.server_close()
    assert exported(collector) == known
    assert exported(CertificateCollector(("127.0.0.1", server.server_port))) == []
