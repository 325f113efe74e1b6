"""The time at which the certificate that nginx serves expires.

The exporter asks nginx for it and reads no file: nginx serves a renewed file only after a reload.
"""

import logging
import ssl
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import Final

from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

SECONDS_BETWEEN_LOOKS: Final = 60
TIMEOUT: Final = 1  # seconds, of a scrape's four
VERSION_TAG: Final = 0xA0
TIME_FORMATS: Final = {0x17: "%y%m%d%H%M%SZ", 0x18: "%Y%m%d%H%M%SZ"}  # UTCTime, GeneralizedTime

logger = logging.getLogger("nginx_access_exporter")


class CertificateCollector(Collector):
    """Asks a server for its certificate once a minute; keeps the last time if that fails."""

    def __init__(self, address: tuple[str, int]) -> None:
        self._address = address
        self._expiry: float | None = None
        self._next_look = 0.0

    def collect(self) -> Iterator[Metric]:
        """Yields the time, if it is known."""
        if time.monotonic() >= self._next_look:
            self._look()
        if self._expiry is not None:
            yield GaugeMetricFamily(
                "nginx_certificate_expiry_timestamp_seconds",
                "Unix time at which the certificate that nginx serves expires.",
                value=self._expiry,
            )

    def _look(self) -> None:
        try:
            pem = ssl.get_server_certificate(self._address, timeout=TIMEOUT)
            self._expiry = expiry(ssl.PEM_cert_to_DER_cert(pem))
        except (OSError, ValueError, LookupError) as error:
            logger.warning("can't read nginx's certificate: %s", error)
        self._next_look = time.monotonic() + SECONDS_BETWEEN_LOOKS


def expiry(certificate: bytes) -> float:
    """Reads `notAfter` of an X.509 certificate (RFC 5280, 4.1), as Unix time.

    Raises:
        ValueError, LookupError: this is no certificate.
    """
    (_, outer), *_ = _elements(certificate)
    (_, signed), *_ = _elements(outer)
    # After the version, which may be missing: serial number, algorithm, issuer, validity.
    fields = [content for tag, content in _elements(signed) if tag != VERSION_TAG]
    _, (tag, text) = _elements(fields[3])
    return datetime.strptime(text.decode(), TIME_FORMATS[tag]).replace(tzinfo=UTC).timestamp()


def _elements(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The tags and contents of the DER elements that stand one after the other."""
    while data:
        tag, length, start = data[0], data[1], 2
        if length & 0x80:  # the length of the length
            start += length & 0x7F
            length = int.from_bytes(data[2:start])
        yield tag, data[start : start + length]
        data = data[start + length :]
