"""Prints what podman can run of the manifests on standard input: nginx-proxy and flask-app.

Podman has no Services, does not replace `$(NAME)` in variables, and gives folders in memory to
root.
"""

import sys
from typing import Any

import yaml

PODS = ("nginx-proxy", "flask-app")
APP = {"name": "FLASK_APP_SERVER", "value": "flask-app-pod:8000"}


def adapt(deployment: dict[str, Any]) -> None:
    """Make one Pod of it."""
    deployment["spec"]["replicas"] = 1
    pod = deployment["spec"]["template"]["spec"]
    for volume in pod["volumes"]:
        volume.get("emptyDir", {}).clear()
    for container in pod["containers"]:
        variables = [each for each in container.get("env", []) if "valueFrom" not in each]
        container["env"] = [APP if each["name"] == APP["name"] else each for each in variables]


def main() -> None:
    """Read, choose, adapt, print."""
    kept = []
    for manifest in yaml.safe_load_all(sys.stdin):
        del manifest["metadata"]["labels"]
        manifest["metadata"].pop("namespace", None)
        if manifest["kind"] == "Deployment" and manifest["metadata"]["name"] in PODS:
            adapt(manifest)
            kept.append(manifest)
        if manifest["kind"] == "ConfigMap":
            kept.append(manifest)
    yaml.safe_dump_all(kept, sys.stdout)


main()
