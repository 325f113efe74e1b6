"""The program that runs a service, its version and its origin."""

from __future__ import annotations

from pathlib import Path

import pytest

from local import native, packages
from local.processes import _prometheus_options
from local.settings import ROOT
from local.versions import Program, version


@pytest.mark.parametrize(
    ("printed", "expected"),
    [
        ("nginx version: nginx/1.22.1", "1.22.1"),
        ("prometheus, version 2.42.0+ds (branch: debian/sid)", "2.42.0+ds"),
        ("NGINX Prometheus Exporter version=0.11.0-1+b4 commit=", "0.11.0-1+b4"),
        ("grafana version 13.2.3", "13.2.3"),
        ("nginx-prometheus-exporter, version v1.5.3", "1.5.3"),
        ("hello", "unknown"),
    ],
)
def test_a_version_is_read_from_the_programs_output(
    tmp_path: Path, printed: str, expected: str
) -> None:
    program = tmp_path / "program"
    program.write_text(f"#!/bin/sh\necho '{printed}' >&2\n")
    program.chmod(0o755)
    assert version(program) == expected


def test_a_program_that_does_not_run_has_an_unknown_version(tmp_path: Path) -> None:
    assert version(tmp_path / "gone") == "unknown"


def test_a_program_is_described_with_its_origin() -> None:
    fetched = ROOT / ".local/packages/usr/sbin/nginx"
    assert Program("nginx", "1.22.1", str(fetched)).describe() == (
        "nginx 1.22.1 from .local/packages/usr/sbin/nginx"
    )
    assert Program("nginx", "1.30", "/usr/sbin/nginx").describe().endswith("from /usr/sbin/nginx")


def test_prometheus_3_gets_no_flag_that_only_2_needs() -> None:
    assert _prometheus_options("2.42.0+ds") == "--enable-feature=expand-external-labels"
    assert _prometheus_options("3.13.4") == ""


def test_a_program_put_on_path_after_the_start_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    newer = tmp_path / "prometheus"
    running = {"prometheus": Program("prometheus", "2.42.0", "/usr/bin/prometheus")}
    monkeypatch.setattr(packages, "programs", lambda: {"prometheus": newer})
    (message,) = native._changed_programs(running)
    assert "prometheus runs /usr/bin/prometheus" in message
    assert f"the next start will use {newer}" in message
    monkeypatch.setattr(packages, "programs", lambda: {"prometheus": Path("/usr/bin/prometheus")})
    assert native._changed_programs(running) == []
