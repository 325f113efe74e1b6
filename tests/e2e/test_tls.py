"""compose.tls.yaml, with certificates made here."""

from __future__ import annotations

import socket
import ssl
import subprocess
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from tests.certificates import make_certificate
from tests.e2e.test_conservation import settled
from tests.stacks import ROOT, ComposeStack, free_port, launch, require_engine, wait_until


@pytest.fixture(scope="module", autouse=True)
def engine() -> None:
    """compose.tls.yaml is for Compose."""
    require_engine("stack in containers")


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A certificate that expires in 13 days."""
    return make_certificate(tmp_path_factory.mktemp("tls"), 13)


@pytest.fixture(scope="module")
def tls(certificate: Path) -> Iterator[ComposeStack]:
    """A stack that serves HTTPS with this certificate."""
    port = str(free_port())
    env = {"TLS_DIR": str(certificate.parent), "HTTPS_PORT": port}
    with launch("compose", env, ROOT / "compose.tls.yaml") as stack:
        stack.https = f"https://127.0.0.1:{port}"
        yield stack


def test_https_answers_over_http_2_with_hsts(tls: ComposeStack, certificate: Path) -> None:
    shown = "%{http_version} %{http_code} %header{strict-transport-security}"
    command = ["curl", "--silent", "--cacert", certificate, "--write-out", shown, "--output", "-"]
    done = subprocess.run([*command, tls.https], capture_output=True, text=True, check=True)
    assert done.stdout == "Hello World!2 200 max-age=31536000"
    asked = requests.get(f"{tls.https}/info", verify=certificate, timeout=10)
    assert asked.json()["host"] == urlsplit(tls.https).netloc
    assert asked.raw.version == 11


def test_plain_http_only_redirects(tls: ComposeStack) -> None:
    for method in ("GET", "POST"):
        url = f"{tls.http}/info?a=%2F"
        answer = requests.request(method, url, allow_redirects=False, timeout=10)
        assert (answer.status_code, answer.headers["Location"]) == (308, f"{tls.https}/info?a=%2F")
        assert "Strict-Transport-Security" not in answer.headers
    assert requests.get(f"{tls.http}/health-check", timeout=10).text == "success"


def handshake(tls: ComposeStack, version: str) -> str:
    """The version of TLS of a connection, or nginx's reason for refusing it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname, context.verify_mode = False, ssl.CERT_NONE
    context.set_ciphers("ALL:@SECLEVEL=0")  # or else the client itself would refuse TLS 1.1
    context.minimum_version = context.maximum_version = ssl.TLSVersion[version]
    address = ("127.0.0.1", urlsplit(tls.https).port)
    try:
        with context.wrap_socket(socket.create_connection(address, 10)) as connection:
            return str(connection.version())
    except ssl.SSLError as error:
        return error.reason


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("version", "outcome"),
    [
        ("TLSv1_1", "TLSV1_ALERT_PROTOCOL_VERSION"),
        ("TLSv1_2", "TLSv1.2"),
        ("TLSv1_3", "TLSv1.3"),
    ],
)
def test_tls_1_2_or_newer_is_needed(tls: ComposeStack, version: str, outcome: str) -> None:
    assert handshake(tls, version) == outcome


def test_requests_are_counted_by_route(tls: ComposeStack, certificate: Path) -> None:
    def counted() -> dict[str, float]:
        name = "nginx_route_requests_total"
        routes = ("/", "/cache-me", "redirect", "none")
        return {r: tls.total("nginx-access-exporter", name, route=r) for r in routes}

    settled(tls)  # the requests of other tests
    before = counted()
    sent = {"/": 5, "/cache-me": 7}
    with requests.Session() as session:
        for path, times in sent.items():
            for _ in range(times):
                assert session.get(tls.https + path, verify=certificate, timeout=10).ok
    for _ in range(3):
        requests.get(tls.http, allow_redirects=False, timeout=10)
    expected = {name: before[name] + number for name, number in (sent | {"redirect": 3}).items()}
    expected["none"] = before["none"]
    settled(tls)
    assert counted() == expected


def test_the_expiry_is_a_metric_and_an_alert(tls: ComposeStack, certificate: Path) -> None:
    decode = ["openssl", "x509", "-enddate", "-noout", "-dateopt", "iso_8601", "-in", certificate]
    done = subprocess.run(decode, capture_output=True, text=True, check=True)
    date = done.stdout.strip().removeprefix("notAfter=")
    name = "nginx_certificate_expiry_timestamp_seconds"

    def as_date() -> str:
        (sample,) = tls.query(name)
        moment = subprocess.check_output(["date", "-u", "-d", f"@{sample['value']:.0f}", "+%F %TZ"])
        return moment.decode().strip()

    wait_until(lambda: tls.query(name), 90, "the metric")
    assert as_date() == date
    # It fires five minutes later, as promtool's test shows.
    alert = 'ALERTS{alertname="CertificateExpires"}'
    wait_until(lambda: tls.query(alert), 60, "the alert to be pending")
    make_certificate(certificate.parent, 90)
    tls.compose("exec", "-T", "nginx-proxy", "nginx", "-s", "reload")
    wait_until(lambda: not tls.query(alert), 120, "the alert to end after the renewal")
