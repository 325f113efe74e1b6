"""Images before Compose starts, and what `./stack` reads of containers and their health checks."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from local import compose
from local.settings import StackError

IMAGES = {name: name.lower() for name in (*compose.BASE_IMAGES, *compose.SERVICE_IMAGES)}
# A docker that has the images whose names are files in its folder, and reaches no registry.
DOCKER = """#!/bin/sh
folder=$(dirname "$0")
case "$1 $2" in
"image inspect") if [ -e "$folder/$5" ]; then echo sha256:1; else echo; exit 1; fi ;;
"pull --quiet") echo "no such host: $3" >&2; exit 1 ;;
esac
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a fake docker, and a file for each image that it has."""
    program = tmp_path / "docker"
    program.write_text(DOCKER)
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}{os.pathsep}{os.environ['PATH']}")
    for image in IMAGES.values():
        (tmp_path / image).touch()
    return tmp_path


def test_without_a_registry_local_images_are_used(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert folder
    compose._pull(IMAGES)
    output = capsys.readouterr().out
    for name in compose.BASE_IMAGES:
        assert f"{IMAGES[name]} could not be pulled, so the one on this machine is used" in output
    # Its tag names one release, so it is not refreshed.
    assert IMAGES["GRAFANA_IMAGE"] not in output


def test_missing_images_are_all_named_and_local_processes_are_suggested(folder: Path) -> None:
    for name in ("GRAFANA_IMAGE", "NGINX_IMAGE"):
        (folder / IMAGES[name]).unlink()
    with pytest.raises(StackError) as caught:
        compose._pull(IMAGES)
    message = str(caught.value)
    assert "GRAFANA_IMAGE=grafana_image: no such host" in message
    assert "NGINX_IMAGE=nginx_image: no such host" in message
    assert "PROMETHEUS_IMAGE" not in message
    assert "./stack up --local" in message


def test_refusals_are_found_although_other_checks_time_out(folder: Path) -> None:
    refusal = {"ExitCode": 1, "Output": "8000/flask-health-check: status 404 NOT FOUND"}
    late = {"ExitCode": -1, "Output": "Health check exceeded timeout (10s)"}
    show(folder, container("abc", "unhealthy", [refusal, late, refusal, late, late]))
    with pytest.raises(StackError, match="404 instead of 200"):
        compose._refuse_failed(compose._containers(), 0, set())


def container(name: str, health: str, checks: list[dict[str, object]]) -> dict[str, object]:
    """A container of the app, as `docker inspect` describes it."""
    return {
        "Id": name,
        "Config": {"Labels": {"com.docker.compose.service": "flask-app"}},
        "State": {"Status": "running", "Health": {"Status": health, "Log": checks}},
        "RestartCount": 0,
    }


def show(folder: Path, *containers: dict[str, object]) -> None:
    """Make docker a program that shows these containers, and whose `up` does nothing."""
    (folder / "docker").write_text(f"""#!/bin/sh
[ "$1" = inspect ] && echo '{json.dumps(containers)}'
case "$1 $2" in "compose ps") echo abc ;; "compose up") exit 0 ;; esac
""")


def test_a_new_replica_does_not_wait_for_the_health_of_the_old_ones(folder: Path) -> None:
    late = {"ExitCode": -1, "Output": "Health check exceeded timeout (10s)"}
    old = container("old", "unhealthy", [late] * 5)
    show(folder, old, container("new", "healthy", []))
    compose._add_replica({"old"})
    show(folder, old, container("new", "unhealthy", [late] * 5))
    with pytest.raises(StackError, match="not healthy: Health check exceeded timeout"):
        compose._add_replica({"old"})


def test_a_start_on_a_full_disk_names_it(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (folder / "docker").open("a") as docker:
        docker.write(
            "[ \"$2\" = exec ] && printf 'Filesystem\\n/dev/x 100 90 10 90%% /\\n'\n"
            'case "$2" in build | up) exit 0 ;; esac\n'
        )
    assert compose.up(IMAGES, attach=False) == 1
    told = capsys.readouterr().err
    assert "the disk is full: 0 MB are free for nginx-proxy's /var/cache/nginx" in told
    assert "prometheus's /prometheus" in told


def test_a_container_that_goes_meanwhile_does_not_hide_the_others(folder: Path) -> None:
    (folder / "docker").write_text(f"""#!/bin/sh
echo >> {folder}/asked
[ "$(wc -l < {folder}/asked)" -gt 2 ] && {{ echo abc; exit; }}
echo 'Error response from daemon: No such container: def' >&2
exit 1
""")
    assert compose.exists()


def test_a_listing_that_fails_is_not_taken_for_no_containers(folder: Path) -> None:
    (folder / "docker").write_text("#!/bin/sh\necho 'compose.yaml: no such file' >&2; exit 14\n")
    with pytest.raises(StackError, match=r"cannot list the containers: compose\.yaml: no such"):
        compose.exists()
