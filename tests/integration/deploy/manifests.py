"""Rendered manifests of kustomize and Helm, and what tests look up in them."""

import subprocess
from functools import cache
from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[3] / "deploy"
OVERLAY = DEPLOY / "kubernetes" / "overlays" / "example"
CHART = DEPLOY / "helm" / "ha-beat"

#: Values files; "" stands for the defaults.
VALUES = ("", "everything", "least", "operator")

CONTROLLERS = ("Deployment", "StatefulSet")

Manifest = dict[str, Any]


@cache
def run(*command: str) -> str:
    """Return the command's output. Each command runs once, because the files do not change meanwhile."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=90, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def template(helm: str, *arguments: str, values: str = "") -> str:
    return run(helm, "template", "shop", str(CHART), "--namespace", "shop", *values_file(values), *arguments)


def values_file(values: str) -> list[str]:
    return ["-f", str(CHART / "ci" / f"{values}-values.yaml")] if values else []


def parsed(text: str) -> list[Manifest]:
    return [each for each in yaml.safe_load_all(text) if each]


def of_kind(manifests: list[Manifest], kind: str, name: str = "") -> list[Manifest]:
    """Return the manifests of this kind whose name ends in ``name``."""
    return [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].endswith(name)]


def beat_of(manifests: list[Manifest]) -> Manifest:
    (found,) = of_kind(manifests, "Deployment", "beat")
    return found


def pods(manifests: list[Manifest]) -> list[tuple[str, dict[str, str], Manifest]]:
    """Return name, labels and spec of each pod."""
    made = [(each, each) for each in of_kind(manifests, "Pod")]
    made += [(each, each["spec"]["template"]) for kind in CONTROLLERS for each in of_kind(manifests, kind)]
    return [
        (f"{each['kind']}/{each['metadata']['name']}", pod["metadata"]["labels"], pod["spec"]) for each, pod in made
    ]


def ports_of(policy: Manifest) -> list[tuple[str, int]]:
    return [(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]]
