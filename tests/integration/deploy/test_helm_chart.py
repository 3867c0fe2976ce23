"""Helm chart: each value has its effect, a wrong one is refused, and `helm test` waits for the whole cluster."""

import http.client
import itertools
import json
import re
import socket
import time
from typing import Any

import pytest
import yaml

import ha_beat
from ha_beat.settings import SETTINGS
from tests.integration.deploy.manifests import (
    CHART,
    VALUES,
    Manifest,
    beat_of,
    of_kind,
    pod_of,
    ports_of,
    services_with,
    template,
    values_file,
)
from tests.integration.docs.blocks import blocks
from tests.support.commands import output, run


def test_service_monitor_of_helm_selects_each_replica_once(helm):
    """Only the headless Service has the selected labels."""
    made = template(helm, values="operator")
    (monitor,) = of_kind(made, "ServiceMonitor")
    assert services_with(monitor["spec"]["selector"]["matchLabels"].items(), made) == ["shop-ha-beat-replicas"]
    (rules,) = of_kind(made, "PrometheusRule")
    assert rules["spec"] == yaml.safe_load((CHART / "rules.yml").read_text())


@pytest.mark.parametrize("values", VALUES)
def test_helm_lint_accepts_the_chart(helm, values):
    output(helm, "lint", "--strict", CHART, *values_file(values))


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
    """Beat could never reach Redis at another port."""
    made = template(helm, "--set-string", f"redis.url={url.replace(',', chr(92) + ',')}")
    (policy,) = of_kind(made, "NetworkPolicy")
    ports = ports_of(policy["spec"])
    assert ("TCP", port) in ports
    assert len(set(ports)) == len(ports)
    assert ("TCP", 1234) not in ports


def test_each_value_has_its_effect(helm):
    """A network policy has further sources, images without `sleep` need no hook, and a large number stays an integer.

    Helm parses whole numbers as floats and would render 2e+06.
    """
    values = ("networkPolicy.ingressFrom[0].ipBlock.cidr=10.0.0.0/8", "preStopSeconds=0")
    made = template(helm, "--set", ",".join((*values, "settings.journal_size=2000000")))
    (policy,), (config,) = of_kind(made, "NetworkPolicy"), of_kind(made, "ConfigMap")
    assert {"ipBlock": {"cidr": "10.0.0.0/8"}} in policy["spec"]["ingress"][0]["from"]
    assert "lifecycle" not in pod_of(made)["containers"][0]
    assert config["data"]["HA_BEAT_JOURNAL_SIZE"] == "2000000"


def refusal(helm: str, values: str) -> str:
    """Return the error of a chart with wrong values."""
    done = run(helm, "template", "x", CHART, "--set", values)
    assert done.returncode != 0
    return done.stderr


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
    assert named in refusal(helm, wrong)


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
        pod = beat_of(template(helm, *arguments))["spec"]["template"]
        return pod["metadata"]["annotations"]["checksum/config"]

    first = checksum()
    assert first == checksum()
    assert first != checksum("--set", "settings.lease_ttl=20")
    assert first != checksum("--set", "redis.url=redis://other:6379/0")


def run_helm_test(helm: str) -> object:
    """Run the script of the chart's test pod; return its error, None if it passes."""
    (pod,) = of_kind(template(helm), "Pod")
    (script,) = pod["spec"]["containers"][0]["args"]
    with pytest.raises(SystemExit) as ended:
        exec(compile(script, "leads.py", "exec"), {})
    return ended.value.code


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
    error = run_helm_test(helm)
    assert (error is None) == passes, error


def test_helm_test_reports_after_90_s_when_each_attempt_takes_long(helm, monkeypatch):
    """A name server that does not answer holds each attempt up. Helm shows the reason only if the pod ends in time."""
    now = 0.0

    def fail_late(*_: Any, **__: Any) -> Any:
        nonlocal now
        now += 8
        raise socket.gaierror("no answer")

    monkeypatch.setattr(socket, "getaddrinfo", fail_late)
    monkeypatch.setattr(time, "monotonic", lambda: now)
    monkeypatch.setattr(time, "sleep", lambda _: None)
    assert "gaierror" in str(run_helm_test(helm))
    assert 90 <= now < 100


def test_pod_of_helm_test_runs_where_beat_runs(helm):
    """It needs the same nodes, image and name servers."""
    values = "tolerations[0].key=a,nodeSelector.disk=ssd,imagePullSecrets[0].name=x,dnsPolicy=Default"
    made = template(helm, "--set", values)
    (pod,), beat = of_kind(made, "Pod"), pod_of(made)
    for name in ("tolerations", "nodeSelector", "imagePullSecrets", "dnsPolicy", "dnsConfig"):
        assert pod["spec"][name] == beat[name], name


def test_null_leaves_a_setting_out(helm):
    made = template(helm, "--set", "settings.redis_options=null,settings.lease_ttl=5")
    (config,) = of_kind(made, "ConfigMap")
    assert config["data"]["HA_BEAT_LEASE_TTL"] == "5"
    assert "HA_BEAT_REDIS_OPTIONS" not in config["data"]


def test_null_for_any_value_leaves_it_out_or_is_refused_and_named(helm):
    """A list in a values file whose lines are all commented out is null."""
    values = yaml.safe_load((CHART / "values.yaml").read_text())
    required = json.loads((CHART / "values.schema.json").read_text())["required"]
    nulls = ",".join(f"{name}=null" for name in values if name not in required)
    made = output(helm, "template", "x", CHART, "--set", nulls)
    assert "nil>" not in made
    assert not re.search(r": null$", made, re.MULTILINE)
    error = refusal(helm, ",".join(f"{name}=null" for name in required))
    assert [name for name in required if f"'{name}'" not in error] == []


def test_values_of_the_page_work_without_the_prometheus_operator(helm, tmp_path):
    """Helm refuses a release with a kind that the cluster does not have."""
    (block,) = (each for each in blocks("yaml") if each.page == "docs/deploy-kubernetes.md")
    (tmp_path / "my-values.yaml").write_text(block.body)
    made = template(helm, "--values", str(tmp_path / "my-values.yaml"))
    (container,) = pod_of(made)["containers"]
    assert container["image"] == "registry.example.com/shop:1.4.0"
    assert {each["apiVersion"] for each in made} <= {"v1", "apps/v1", "policy/v1", "networking.k8s.io/v1"}


def test_chart_names_the_version_of_the_package():
    chart = yaml.safe_load((CHART / "Chart.yaml").read_text())
    assert chart["appVersion"] == ha_beat.__version__
