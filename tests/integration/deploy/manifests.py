"""Rendered manifests of kustomize and Helm, and what tests look up in them."""

from collections.abc import Set as AbstractSet
from functools import cache
from typing import Any

import yaml

from tests.support.commands import DEPLOY, output

OVERLAY = DEPLOY / "kubernetes" / "overlays" / "example"
CHART = DEPLOY / "helm" / "ha-beat"

#: Values files; "" stands for the defaults.
VALUES = ("", "everything", "least", "operator")

CONTROLLERS = ("Deployment", "StatefulSet")

Manifest = dict[str, Any]


#: The output of a command, which runs once: the files do not change during the tests.
rendered = cache(output)


def template(helm: str, *arguments: str, values: str = "") -> list[Manifest]:
    return parsed(rendered(helm, "template", "shop", CHART, "--namespace", "shop", *values_file(values), *arguments))


def values_file(values: str) -> list[object]:
    return ["-f", str(CHART / "ci" / f"{values}-values.yaml")] if values else []


def parsed(text: str) -> list[Manifest]:
    return [each for each in yaml.safe_load_all(text) if each]


def of_kind(manifests: list[Manifest], kind: str, name: str = "") -> list[Manifest]:
    """Return the manifests of this kind whose name ends in ``name``."""
    return [each for each in manifests if each["kind"] == kind and each["metadata"]["name"].endswith(name)]


def beat_of(manifests: list[Manifest]) -> Manifest:
    (found,) = of_kind(manifests, "Deployment", "beat")
    return found


def pod_of(manifests: list[Manifest]) -> Manifest:
    """Return the specification of beat's pods."""
    return beat_of(manifests)["spec"]["template"]["spec"]


def pods(manifests: list[Manifest]) -> list[tuple[str, dict[str, str], Manifest]]:
    """Return name, labels and spec of each pod."""
    made = [(each, each) for each in of_kind(manifests, "Pod")]
    made += [(each, each["spec"]["template"]) for kind in CONTROLLERS for each in of_kind(manifests, kind)]
    return [
        (f"{each['kind']}/{each['metadata']['name']}", pod["metadata"]["labels"], pod["spec"]) for each, pod in made
    ]


def ports_of(policy: Manifest) -> list[tuple[str, int]]:
    return [(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]]


def services_with(labels: AbstractSet[tuple[str, str]], manifests: list[Manifest]) -> list[str]:
    """Return the names of the Services that have all these labels."""
    services = (each["metadata"] for each in of_kind(manifests, "Service"))
    return [each["name"] for each in services if labels <= each.get("labels", {}).items()]
