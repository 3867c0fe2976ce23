"""Manifests that kustomize and Helm render: valid by the schemas, and correct beyond them."""

import re

import kubernetes_validate
import pytest
import yaml

from ha_beat.settings import SETTINGS
from tests.integration.deploy.manifests import (
    DEPLOY,
    VALUES,
    Manifest,
    beat_of,
    of_kind,
    pod_of,
    pods,
    ports_of,
    services_with,
    template,
)

#: Versions of Kubernetes whose schemas are checked.
VERSIONS = ("1.31", "1.34", "1.36")


@pytest.fixture(params=["kustomize", *(f"helm {values}".strip() for values in VALUES)])
def manifests(request: pytest.FixtureRequest) -> list[Manifest]:
    """Return the manifests of kustomize or of one values file."""
    if request.param == "kustomize":
        return request.getfixturevalue("kustomized")
    return template(request.getfixturevalue("helm"), values=request.param.removeprefix("helm").strip())


@pytest.fixture
def container(manifests: list[Manifest]) -> Manifest:
    return next(each for each in pod_of(manifests)["containers"] if each["name"] == "beat")


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(manifests, version):
    for manifest in manifests:
        if manifest["kind"] not in {"ServiceMonitor", "PrometheusRule"}:  # not in Kubernetes' schemas
            kubernetes_validate.validate(manifest, version, strict=True)


def test_every_selector_matches_exactly_the_beat_pods(manifests):
    """A schema accepts selectors that match no pod or, if empty, every pod of the namespace."""
    beat = beat_of(manifests)
    labels = beat["spec"]["template"]["metadata"]["labels"]
    others = [each for name, each, _ in pods(manifests) if name != f"Deployment/{beat['metadata']['name']}"]
    selectors = {"Deployment": beat["spec"]["selector"]["matchLabels"]}
    for kind, path in (("PodDisruptionBudget", "selector"), ("NetworkPolicy", "podSelector")):
        for each in of_kind(manifests, kind):
            if each["metadata"]["name"] == beat["metadata"]["name"]:
                selectors[kind] = each["spec"][path]["matchLabels"]
    for service in of_kind(manifests, "Service"):
        if "beat" in service["metadata"]["name"]:
            selectors[service["metadata"]["name"]] = service["spec"]["selector"]
    for constraint in beat["spec"]["template"]["spec"].get("topologySpreadConstraints", []):
        selectors[constraint["topologyKey"]] = constraint["labelSelector"]["matchLabels"]
    for name, selector in selectors.items():
        assert selector.items() <= labels.items(), name
        assert not any(selector.items() <= other.items() for other in others), f"{name} matches others too"


def test_no_selector_of_the_base_matches_a_pod_of_the_chart(helm, kustomized):
    """Kubernetes can't evict a pod of two PodDisruptionBudgets, and a Service would mix the two clusters."""
    budgets, policies = of_kind(kustomized, "PodDisruptionBudget"), of_kind(kustomized, "NetworkPolicy", "beat")
    services = [each for each in of_kind(kustomized, "Service") if "beat" in each["metadata"]["name"]]
    selectors = [each["spec"]["selector"]["matchLabels"] for each in budgets]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in policies]
    selectors += [each["spec"]["selector"] for each in services]
    assert len(selectors) == 4
    for name, labels, _ in pods(template(helm)):
        assert not any(selector.items() <= labels.items() for selector in selectors), name


def test_example_redis_keeps_its_data_and_admits_only_its_namespace(kustomized):
    """Persistent, without eviction, with memory to rewrite its file. It has no password, so access is restricted."""
    (redis,) = of_kind(kustomized, "StatefulSet")
    pod = redis["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    (policy,), (service,) = of_kind(kustomized, "NetworkPolicy", "redis"), of_kind(kustomized, "Service", "redis")
    assert (given["--appendonly"], given["--maxmemory-policy"]) == ("yes", "noeviction")
    (claim,) = redis["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == container["volumeMounts"][0]["name"]
    # As the API server stores it: server-side apply compares the list as a whole.
    stored = {"apiVersion": "v1", "kind": "PersistentVolumeClaim", "status": {"phase": "Pending"}}
    assert stored.items() <= claim.items()
    assert claim["spec"]["volumeMode"] == "Filesystem"
    assert _megabytes(container["resources"]["limits"]["memory"]) >= 2 * _megabytes(given["--maxmemory"])
    labels = pod["metadata"]["labels"].items()
    for selector in (policy["spec"]["podSelector"]["matchLabels"], service["spec"]["selector"]):
        assert selector.items() <= labels
    assert policy["spec"]["ingress"][0]["from"] == [{"podSelector": {}}]


def _megabytes(text: str) -> int:
    return int(re.fullmatch(r"(\d+)(?:mb|Mi)", text)[1])


def test_every_resource_that_a_pod_refers_to_exists(manifests):
    """A missing ConfigMap or Secret keeps the pod from starting."""
    made = {(each["kind"], each["metadata"]["name"]) for each in manifests}
    theirs = {"shop"}  # the user's Secret in the values files
    for name, _, spec in pods(manifests):
        account = spec.get("serviceAccountName", "default")
        assert account == "default" or ("ServiceAccount", account) in made, name
        for container in spec["containers"] + spec.get("initContainers", []):
            for source in container.get("envFrom", []):
                for kind, key in (("ConfigMap", "configMapRef"), ("Secret", "secretRef")):
                    assert key not in source or source[key]["name"] in theirs or (kind, source[key]["name"]) in made
            for variable in container.get("env", []):
                secret = variable.get("valueFrom", {}).get("secretKeyRef")
                assert secret is None or secret["name"] in theirs or ("Secret", secret["name"]) in made
            volumes = {volume["name"] for volume in spec.get("volumes", [])} | {"data"}
            assert {mount["name"] for mount in container.get("volumeMounts", [])} <= volumes


def test_pods_meet_the_restricted_profile(manifests):
    """As pod-security.kubernetes.io/enforce=restricted requires, with a read-only root file system."""
    for name, _, spec in pods(manifests):
        assert spec["securityContext"]["runAsNonRoot"] is True, name
        assert spec["securityContext"]["runAsUser"] > 0, name
        assert spec["securityContext"]["seccompProfile"]["type"] == "RuntimeDefault", name
        assert spec["automountServiceAccountToken"] is False, name
        for container in spec["containers"] + spec.get("initContainers", []):
            own = container["securityContext"]
            assert own["allowPrivilegeEscalation"] is False, name
            assert own["capabilities"]["drop"] == ["ALL"], name
            assert own["readOnlyRootFilesystem"] is True, name
            assert "memory" in container["resources"]["limits"], name
            assert "cpu" in container["resources"]["requests"], name


def test_each_probe_uses_its_endpoint(container):
    """A liveness probe at /readyz would restart every replica while Redis is unreachable."""
    probes = {probe: container[f"{probe}Probe"]["httpGet"] for probe in ("startup", "liveness", "readiness")}
    paths = {probe: asked["path"] for probe, asked in probes.items()}
    assert paths == {"startup": "/livez", "liveness": "/livez", "readiness": "/readyz"}
    assert {asked["port"] for asked in probes.values()} <= {port["name"] for port in container["ports"]}


def test_replica_has_its_pods_name_and_address(container):
    given = {each["name"]: each.get("valueFrom", {}).get("fieldRef", {}).get("fieldPath") for each in container["env"]}
    fields = {name: path for name, path in given.items() if path}
    versions = [each["valueFrom"]["fieldRef"]["apiVersion"] for each in container["env"] if given[each["name"]]]
    assert versions == ["v1", "v1"]  # as the API server stores it, for server-side apply
    assert fields == {"HA_BEAT_REPLICA": "metadata.name", "POD_IP": "status.podIP"}


def test_rollout_keeps_the_replicas_and_leaves_time_for_a_handover(manifests, container):
    assert beat_of(manifests)["spec"]["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    # For a command in flight and the release; command_timeout is at most 2.5 s.
    assert pod_of(manifests)["terminationGracePeriodSeconds"] >= pause + 2 * 2.5 + 5


def test_headless_service_includes_replicas_that_are_not_ready(manifests):
    (replicas,) = of_kind(manifests, "Service", "-replicas")
    assert replicas["spec"]["clusterIP"] == "None"
    assert replicas["spec"]["publishNotReadyAddresses"] is True


def test_settings_exist_and_probes_use_the_bound_port(manifests, container):
    (config,) = of_kind(manifests, "ConfigMap", container["envFrom"][0]["configMapRef"]["name"])
    given = {*config["data"], *(each["name"] for each in container["env"])}
    known = {f"HA_BEAT_{setting.name.upper()}" for setting in SETTINGS}
    assert {name for name in given if name.startswith("HA_BEAT_")} <= known
    assert config["data"]["HA_BEAT_HTTP_BIND"].endswith(f":{container['ports'][0]['containerPort']}")


def test_service_monitor_of_kustomize_selects_each_replica_once(kustomized):
    monitor = yaml.safe_load((DEPLOY / "kubernetes" / "monitoring" / "service-monitor.yaml").read_text())
    (wanted,) = monitor["spec"]["selector"]["matchExpressions"]
    labels = monitor["spec"]["selector"]["matchLabels"].items() | {(wanted["key"], "true")}
    assert services_with(labels, kustomized) == ["ha-beat-replicas"]


def test_helm_and_kustomize_render_the_same(helm, kustomized):
    """Only names, labels and the Secret's content differ."""
    made = [kustomized, template(helm, "--set", "app=example")]
    specs = [beat_of(each)["spec"] for each in made]
    pod_specs = [each["template"]["spec"] for each in specs]
    for name in ("replicas", "strategy", "revisionHistoryLimit"):
        assert specs[0][name] == specs[1][name], name
    for one, other in (pod_specs, (pod_specs[0]["containers"][0], pod_specs[1]["containers"][0])):
        assert one.keys() == other.keys()
        for name in one.keys() - {"serviceAccountName", "containers", "topologySpreadConstraints", "envFrom", "image"}:
            assert one[name] == other[name], name
    spread = [[{**each, "labelSelector": None} for each in spec["topologySpreadConstraints"]] for spec in pod_specs]
    assert spread[0] == spread[1]
    for kind in ("PodDisruptionBudget", "NetworkPolicy"):
        found = [each["spec"] for manifests in made for each in of_kind(manifests, kind, "beat")]
        one, other = ({**each, "selector": None, "podSelector": None} for each in found)
        if kind == "NetworkPolicy":
            one["egress"], other["egress"] = (sorted(ports_of(each), key=str) for each in (one, other))
        assert one == other
