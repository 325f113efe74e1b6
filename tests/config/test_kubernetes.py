"""The manifests of kubernetes/ are valid, and agree with Compose's files, names and versions."""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from cloudcoil.models.keda.v1alpha1 import ScaledObject
from cloudcoil.models.prometheus_operator.v1 import PrometheusRule, ServiceMonitor
from cloudcoil.resources import Resource

from local.settings import ROOT, read_env_file
from tests import sample
from tests.stacks import run

Manifest = dict[str, Any]

KUBERNETES = ROOT / "kubernetes"
OPERATOR = KUBERNETES / "components" / "prometheus-operator"
BUILDS = ("base", *(f"overlays/{path.name}" for path in (KUBERNETES / "overlays").iterdir()))
COMPONENTS = {path.name for path in (KUBERNETES / "components").iterdir()}
# Kinds that Kubernetes itself does not have.
OPERATORS: dict[str, type[Resource]] = {
    "PrometheusRule": PrometheusRule,
    "ScaledObject": ScaledObject,
    "ServiceMonitor": ServiceMonitor,
}
VERSIONS = list(dict.fromkeys(kubernetes_validate.utils.all_versions()))[-3:]
SERVICES = sorted(
    yaml.safe_load((ROOT / "compose.yaml").read_text())["services"].keys() - {"traffic"}
)
LARGEST = 262_144  # bytes of an object's annotations; `kubectl apply` copies the object into one


@functools.cache
def built(folder: Path) -> tuple[Manifest, ...]:
    """The objects that kustomize makes of a folder."""
    command = ["kubectl", "kustomize", str(folder)]
    return tuple(yaml.safe_load_all(run(command)))


def base(kind: str) -> dict[str, Manifest]:
    """The base's objects of a kind by name, ConfigMaps without the hash of their content."""
    return {
        re.sub(r"-[a-z0-9]{10}$", "", each["metadata"]["name"])
        if kind == "ConfigMap"
        else each["metadata"]["name"]: each
        for each in built(KUBERNETES / "base")
        if each["kind"] == kind
    }


def pods() -> dict[str, Manifest]:
    """The specifications of the base's Pods by the name of what makes them."""
    makers = base("Deployment") | base("StatefulSet")
    return {name: maker["spec"]["template"]["spec"] for name, maker in makers.items()}


def containers() -> dict[str, Manifest]:
    return {each["name"]: each for pod in pods().values() for each in pod["containers"]}


@functools.cache
def compose() -> Manifest:
    return yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]


def validate(manifest: Manifest, version: str) -> None:
    """Raise an error if a field is unknown, missing or of a wrong type."""
    model = OPERATORS.get(manifest["kind"])
    if not model:
        kubernetes_validate.validate(manifest, version, strict=True)
        return
    read = model.model_validate(manifest)
    # A model leaves out the fields that it does not know.
    assert read.model_dump(mode="json", by_alias=True, exclude_unset=True) == manifest


# Valid


def test_each_option_is_an_overlay() -> None:
    assert {f"overlays/{name}" for name in COMPONENTS} | {"base"} == set(BUILDS)
    assert len(COMPONENTS) > 4


def test_the_repositorys_root_is_the_base() -> None:
    assert built(ROOT) == built(KUBERNETES / "base")


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize("folder", BUILDS)
def test_manifests_are_valid(folder: str, version: str) -> None:
    for manifest in built(KUBERNETES / folder):
        validate(manifest, version)


@pytest.mark.parametrize("kind", ["Deployment", *sorted(OPERATORS)])
def test_validation_finds_a_field_that_does_not_exist(kind: str) -> None:
    every = [each for folder in BUILDS for each in built(KUBERNETES / folder)] + [prometheus_rule()]
    manifest = copy.deepcopy(next(each for each in every if each["kind"] == kind))
    validate(manifest, VERSIONS[-1])
    manifest["spec"]["replicaz"] = 2
    with pytest.raises((AssertionError, kubernetes_validate.ValidationError)):
        validate(manifest, VERSIONS[-1])


@pytest.mark.parametrize("folder", BUILDS)
def test_objects_have_one_namespace_and_the_usual_labels(folder: str) -> None:
    for manifest in built(KUBERNETES / folder):
        metadata = manifest["metadata"]
        namespace = metadata["name" if manifest["kind"] == "Namespace" else "namespace"]
        part = metadata["labels"]["app.kubernetes.io/part-of"]
        assert (namespace, part) == ("flask-stack", "flask-stack"), metadata["name"]
        if manifest["kind"] in ("Deployment", "StatefulSet"):
            labels = manifest["spec"]["template"]["metadata"]["labels"]
            assert labels["app.kubernetes.io/name"] == metadata["name"]


def test_an_overlay_of_the_users_moves_everything_to_another_namespace(tmp_path: Path) -> None:
    assert {each["metadata"]["namespace"] for each in shop(tmp_path)[1:]} == {"shop"}
    assert shop(tmp_path)[0]["metadata"]["name"] == "shop"


def test_an_overlay_of_the_users_sets_images_and_settings(tmp_path: Path) -> None:
    deployments = {
        each["metadata"]["name"]: each for each in shop(tmp_path) if each["kind"] == "Deployment"
    }
    (app,) = deployments["flask-app"]["spec"]["template"]["spec"]["containers"]
    assert app["image"] == "registry.example.com/flask-app:7"
    name = app["envFrom"][0]["configMapRef"]["name"]
    (settings,) = (each for each in shop(tmp_path) if each["metadata"]["name"] == name)
    assert settings["data"]["GUNICORN_WORKERS"] == "8"
    assert settings["data"]["CLUSTER_DOMAIN"] == "cluster.local"


def shop(folder: Path) -> tuple[Manifest, ...]:
    """What the overlay in docs/kubernetes.md makes, with all components that can be combined."""
    text = (ROOT / "docs" / "kubernetes.md").read_text()
    example = re.search(r"```yaml\n(# kustomization.yaml\n.*?)```", text, re.S)
    assert example
    # kustomize takes relative paths only.
    root = Path("..", *[".."] * len(folder.parents), *ROOT.parts[1:])
    (folder / "shop").mkdir(exist_ok=True)
    made = example[1].replace("../stack", str(root))
    (folder / "shop" / "kustomization.yaml").write_text(made)
    return built(folder / "shop")


# The same files, names and versions as Compose


def test_containers_have_the_names_of_composes_services() -> None:
    assert sorted(containers()) == SERVICES


def test_config_maps_hold_the_files_that_compose_mounts() -> None:
    folders = {
        "prometheus-rules": "prometheus/rules/*.yml",
        "prometheus-docs": "docs/*.html",
        "alertmanager-receivers": "prometheus/receivers/*",
        "console-gate": "nginx/console-gate/*",
        "nginx-app": "flask/nginx/*.conf",
    }
    found = {name: each.get("data", {}) for name, each in base("ConfigMap").items()}
    for name, pattern in folders.items():
        assert found[name] == {path.name: path.read_text() for path in ROOT.glob(pattern)}
    dashboards = [ROOT / path for path in sample.tracked("grafana/dashboards")]
    for path in dashboards:
        assert found.pop(f"grafana-dashboard-{path.stem}") == {path.name: path.read_text()}
    assert not [name for name in found if name.startswith("grafana-dashboard")]
    assert found["prometheus"] == {
        "prometheus.yml": (ROOT / "prometheus/prometheus.yml").read_text()
    }


@pytest.mark.parametrize("folder", BUILDS)
def test_objects_are_small_enough_for_a_client_side_apply(folder: str) -> None:
    for manifest in [*built(KUBERNETES / folder), prometheus_rule()]:
        assert len(json.dumps(manifest)) < LARGEST, manifest["metadata"]["name"]


@pytest.mark.parametrize("name", SERVICES)
def test_a_container_has_the_folders_that_compose_mounts(name: str) -> None:
    """The volume, file or folder that Compose mounts has its counterpart here."""
    service = compose()[name]
    targets = {each["target"] for each in service.get("volumes", [])}
    targets |= {each.split(":")[0] for each in service.get("tmpfs", [])}
    # Files of the app's that nginx serves are in the user's image; secrets have another folder.
    targets -= {"/srv/app/static", "/run/secrets"}
    mounts = {each["mountPath"] for each in containers()[name].get("volumeMounts", [])}
    assert targets <= mounts | {"/etc/nginx/templates"}


def test_volumes_have_the_files_that_containers_mount() -> None:
    maps = {each["metadata"]["name"]: each for each in base("ConfigMap").values()}
    for pod in pods().values():
        volumes = {each["name"]: each for each in pod["volumes"] if "configMap" in each}
        for mount in [one for each in pod["containers"] for one in each.get("volumeMounts", [])]:
            if "subPath" in mount:
                source = maps[volumes[mount["name"]]["configMap"]["name"]]
                assert mount["subPath"] in source["data"]


@pytest.mark.parametrize("name", ["alertmanager", "prometheus", "nginx-access-exporter"])
def test_programs_get_the_options_of_compose(name: str) -> None:
    """But for the addresses that Alertmanager listens on, which keep one machine out."""
    theirs = {option.partition("=")[0] for option in compose()[name]["command"]}
    ours = {option.partition("=")[0] for option in containers()[name]["args"]}
    assert ours == theirs - {"--web.listen-address"}
    assert containers()[name].get("command") == compose()[name].get("entrypoint")


def test_console_gate_gets_the_variables_of_compose() -> None:
    theirs = compose()["console-gate"]["environment"]
    ours = {each["name"]: each.get("value") for each in containers()["console-gate"]["env"]}
    differing = {name for name in ours if ours[name] != str(theirs.get(name)).replace("$$", "$")}
    consoles = {"CONSOLE_PROMETHEUS", "CONSOLE_ALERTMANAGER", "CONSOLE_GRAFANA"}
    assert differing == consoles | {"CONSOLE_HOSTS", "NAMESPACE", "CLUSTER_DOMAIN"}
    assert theirs.keys() <= ours.keys()
    for name in consoles:
        host, _, port = ours[name].partition(":")
        assert f"{host.partition('.')[0]}:{port}" == theirs[name]


def test_images_are_those_of_env() -> None:
    values = read_env_file(".env")
    expected = {values[name] for name in values if name.endswith("_IMAGE")}
    expected.remove(values["PYTHON_IMAGE"])  # our own images are built on it
    images = {each["image"] for each in containers().values()}
    own = {image for image in images if image.split(":")[0] in compose()}
    assert images - own == expected
    version = re.search(r"^## \[([\d.]+)\]", (ROOT / "CHANGELOG.md").read_text(), re.M)
    assert version
    assert {image.split(":")[1] for image in own} == {version[1]}


def test_settings_are_those_of_env_and_compose() -> None:
    values = read_env_file("kubernetes/base/settings.env")
    shipped = read_env_file(".env")
    for name in ("PROMETHEUS_RETENTION_TIME", "PROMETHEUS_RETENTION_SIZE"):
        assert values[name] == shipped[name]
    size = f"${{NGINX_CACHE_MAX_SIZE:-{values['NGINX_CACHE_MAX_SIZE']}}}"
    assert size == compose()["nginx-proxy"]["environment"]["NGINX_CACHE_MAX_SIZE"]
    assert compose()["prometheus"]["environment"].keys() <= values.keys()


# Who finds and reaches whom


def test_each_name_in_prometheus_yml_is_a_headless_service_with_that_port() -> None:
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    for job in config["scrape_configs"] + config["alerting"]["alertmanagers"]:
        for found in job.get("dns_sd_configs", []):
            (name,) = found["names"]
            assert found["port"] in container_ports(base("Service")[name])
            assert base("Service")[name]["spec"]["clusterIP"] == "None"
    found = [job for job in config["scrape_configs"] if "dns_sd_configs" in job]
    assert len(found) == len(config["scrape_configs"]) - 1  # Prometheus itself


def test_full_names_in_variables_are_services_with_that_port() -> None:
    pattern = r"([\w-]+)\.\$\(NAMESPACE\)\.svc\.\$\(CLUSTER_DOMAIN\):(\d+)"
    values = [each.get("value", "") for one in containers().values() for each in one.get("env", [])]
    found = [match for value in values if (match := re.fullmatch(pattern, value))]
    assert len(found) == len([value for value in values if "NAMESPACE" in value]) == 4
    for match in found:
        assert int(match[2]) in container_ports(base("Service")[match[1]])


def container_ports(service: Manifest) -> list[int]:
    """The Pods' ports to which a Service leads."""
    (pod,) = (
        each for name, each in pods().items() if name == selected(service["spec"]["selector"])
    )
    named = {
        port["name"]: port["containerPort"]
        for container in pod["containers"]
        for port in container["ports"]
    }
    return [named[each["targetPort"]] for each in service["spec"]["ports"]]


def selected(labels: dict[str, str]) -> str:
    return labels["app.kubernetes.io/name"]


def test_network_policies_name_ports_that_their_pods_have() -> None:
    checked = 0
    for policy in base("NetworkPolicy").values():
        spec = policy["spec"]
        if not (labels := spec["podSelector"].get("matchLabels")):
            continue
        ports = {
            port["name"]
            for each in pods()[selected(labels)]["containers"]
            for port in each["ports"]
        }
        for rule in spec.get("ingress", []):
            checked += 1
            assert {each["port"] for each in rule["ports"]} <= ports
    assert checked > 4


def test_pods_that_prometheus_scrapes_are_open_to_it() -> None:
    metrics = base("NetworkPolicy")["metrics"]["spec"]
    (rule,) = metrics["ingress"]
    services = [
        each
        for each in base("Service").values()
        if each["metadata"]["labels"]["app.kubernetes.io/component"] == "metrics"
    ]
    assert len(services) == 4
    for service in services:
        assert (
            selected(service["spec"]["selector"])
            in metrics["podSelector"]["matchExpressions"][0]["values"]
        )
        (port,) = service["spec"]["ports"]
        assert port["targetPort"] in [each["port"] for each in rule["ports"]]


# Shutdown: hooks, then requests under way, within the grace period


@pytest.mark.parametrize("name", ["nginx-proxy", "flask-app"])
def test_grace_period_has_room_for_the_hooks_and_for_the_longest_request(name: str) -> None:
    longest = int(
        re.findall(r"FLASK_APP_TIMEOUT=(\d+)", (ROOT / "nginx/Dockerfile").read_text())[0]
    )
    spec = pods()[name]
    hooks = [json.dumps(each["lifecycle"]["preStop"]) for each in spec["containers"]]
    seconds = [int(re.findall(r'(?:sleep |seconds": )(\d+)', hook)[-1]) for hook in hooks]
    waits = sum(seconds) if name == "flask-app" else seconds[0] + seconds[2]
    assert spec["terminationGracePeriodSeconds"] >= waits + longest


# Prometheus Operator


@functools.cache
def prometheus_rule() -> Manifest:
    """What rules.sh prints."""
    return yaml.safe_load(run([str(OPERATOR / "rules.sh")]))


def rule_groups() -> Iterator[Manifest]:
    for path in sorted((ROOT / "prometheus" / "rules").iterdir()):
        yield from yaml.safe_load(path.read_text())["groups"]


def test_rules_for_the_operator_are_all_rules_but_two(tmp_path: Path) -> None:
    """Prometheus and Alertmanager of the operator have jobs with other names."""
    validate(prometheus_rule(), VERSIONS[-1])
    groups = prometheus_rule()["spec"]["groups"]
    left_out = [
        rule
        for group, original in zip(groups, rule_groups(), strict=True)
        for rule in original["rules"]
        if rule not in group["rules"]
    ]
    jobs = [(rule["record"], rule["labels"]["job"]) for rule in left_out]
    assert jobs == [("stack:expected_job", "prometheus"), ("stack:expected_job", "alertmanager")]
    assert sum(len(group["rules"]) for group in groups) > 100
    (tmp_path / "rules.yml").write_text(yaml.safe_dump(prometheus_rule()["spec"]))
    run(["promtool", "check", "rules", str(tmp_path / "rules.yml")])


def test_operator_scrapes_the_jobs_of_prometheus_yml() -> None:
    overlay = built(KUBERNETES / "overlays" / "prometheus-operator")
    (monitor,) = (each for each in overlay if each["kind"] == "ServiceMonitor")
    labels = monitor["spec"]["selector"]["matchLabels"]
    jobs = {
        each["metadata"]["name"]
        for each in overlay
        if each["kind"] == "Service" and labels.items() <= each["metadata"]["labels"].items()
    }
    config = yaml.safe_load((ROOT / "prometheus" / "prometheus.yml").read_text())
    expected = {job["job_name"] for job in config["scrape_configs"]}
    assert jobs == expected - {"prometheus", "alertmanager", "grafana"}
    (endpoint,) = monitor["spec"]["endpoints"]
    assert endpoint["interval"] == config["global"]["scrape_interval"]
    assert endpoint["scrapeTimeout"] == config["global"]["scrape_timeout"]


def test_operator_overlay_has_the_dashboards_and_no_monitoring_of_its_own() -> None:
    overlay = built(KUBERNETES / "overlays" / "prometheus-operator")
    names = {each["metadata"]["name"] for each in overlay}
    assert not names & {"prometheus", "alertmanager", "grafana", "console-gate"}
    dashboards = [
        each for each in overlay if each["metadata"]["labels"].get("grafana_dashboard") == "1"
    ]
    assert len(dashboards) == len(sample.tracked("grafana/dashboards"))
