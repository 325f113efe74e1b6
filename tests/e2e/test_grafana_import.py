"""The dashboards in a user's own Grafana, imported by the commands of examples/existing-host."""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
import requests

from local.settings import ROOT, environment, grafana_program, settings
from tests.config.test_dashboards import DASHBOARDS
from tests.servers import running
from tests.stacks import free_port

GUIDE = (ROOT / "examples" / "existing-host" / "README.md").read_text()
(IMPORT,) = re.findall(r"^```sh\n(GRAFANA=.*?)^```", GUIDE, re.M | re.S)
WRITTEN = "http://admin:admin@localhost:3000"


@pytest.fixture
def grafana(tmp_path: Path) -> Iterator[str]:
    """The URL of a Grafana with its own defaults, as its admin."""
    program = grafana_program(settings())
    if not program:
        pytest.skip("no Grafana for local processes: ./stack grafana, or set GRAFANA_HOME")
    port = free_port()
    home = environment(settings(), tmp_path)["GRAFANA_HOME"]
    env = os.environ | {
        "GF_SERVER_HTTP_ADDR": "127.0.0.1",
        "GF_SERVER_HTTP_PORT": str(port),
        "GF_PATHS_DATA": str(tmp_path / "data"),
        "GF_PATHS_LOGS": str(tmp_path / "log"),
        "GF_PATHS_PLUGINS": str(tmp_path / "plugins"),
        "GF_ANALYTICS_CHECK_FOR_UPDATES": "false",
        "GF_ANALYTICS_REPORTING_ENABLED": "false",
        "GF_PLUGINS_PREINSTALL_DISABLED": "true",
    }
    url = f"http://admin:admin@127.0.0.1:{port}"
    command = [program, "server", f"--homepath={home}"]
    with (
        (tmp_path / "output").open("wb") as output,
        running(command, f"{url}/api/health", 120, env=env, output=output),
    ):
        yield url


def test_dashboards_can_be_imported_beside_any_data_source(grafana: str) -> None:
    source = {"name": "Mine", "type": "prometheus", "access": "proxy", "url": "http://127.0.0.1:9"}
    requests.post(
        f"{grafana}/api/datasources", json=source | {"uid": "mine"}, timeout=30
    ).raise_for_status()
    subprocess.run(
        ["bash", "-ec", IMPORT.replace(WRITTEN, grafana)],
        cwd=ROOT,
        check=True,
        capture_output=True,
    )
    for file in DASHBOARDS:
        found = requests.get(f"{grafana}/api/dashboards/uid/{file['uid']}", timeout=30).json()
        assert found["dashboard"]["panels"] == file["panels"]
        # Nothing names a data source; the variable offers every one of the type Prometheus.
        sources = set(re.findall(r"'uid': '([^']+)'", str(found["dashboard"]["panels"])))
        assert sources == {"${datasource}"}
        variable = found["dashboard"]["templating"]["list"][0]
        assert (variable["type"], variable["query"]) == ("datasource", "prometheus")
