"""Prometheus with the shipped files and three beats: it scrapes, records and alerts, and panels have data."""

import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import yaml

from tests.integration.deploy.test_monitoring import RULES, dashboard_queries, rules, series_of
from tests.integration.monitoring.test_replicas import Probed
from tests.support.servers import LOCALHOST, RedisServer, Server, find_program, need, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: Values of Grafana's variables if the user selects nothing.
VARIABLES = {"$__rate_interval": "15s", "$__interval": "1m", "$namespace": ".*", "$job": ".*"}


class Prometheus(Server):
    """Prometheus with the shipped configuration and rules, but with these targets and shorter times."""

    def __init__(self, targets: list[str]) -> None:
        self.binary = find_program("prometheus")
        super().__init__("prometheus")
        config = yaml.safe_load((RULES.parent / "prometheus.yml").read_text())
        config["global"] = {"scrape_interval": "1s", "scrape_timeout": "1s", "evaluation_interval": "1s"}
        config["rule_files"] = [str(self.directory / "rules.yml")]
        (job,) = config["scrape_configs"]
        del job["dns_sd_configs"]
        job["static_configs"] = [{"targets": targets}]
        (self.directory / "prometheus.yml").write_text(yaml.safe_dump(config))
        shipped = RULES.read_text()
        assert re.search(r"^        for: \d+[mh]$", shipped, re.MULTILINE)
        hurried = re.sub(r"^        for: \d+[mh]$", "        for: 3s", shipped, flags=re.MULTILINE)
        assert "(ha_beat_lease_age_seconds) < 30" in hurried
        hurried = hurried.replace("(ha_beat_lease_age_seconds) < 30", "(ha_beat_lease_age_seconds) < 6")
        (self.directory / "rules.yml").write_text(hurried)

    def command(self) -> list[object]:
        files = f"--config.file={self.directory}/prometheus.yml", f"--storage.tsdb.path={self.directory}/data"
        return [self.binary, *files, f"--web.listen-address={LOCALHOST}:{self.port}"]

    def answers(self) -> bool:
        with urllib.request.urlopen(f"http://{LOCALHOST}:{self.port}/-/ready", timeout=2) as reply:
            return bool(reply.status == 200)

    def ask(self, path: str, **parameters: str) -> Any:
        """Return the `data` of the reply. Raises urllib's errors, also for a refused query."""
        url = f"http://{LOCALHOST}:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        return self.ask("query", query=expr)["result"]

    def range(self, expr: str) -> list[dict[str, Any]]:
        """Query over some time, as a panel does."""
        now = time.time()
        return self.ask("query_range", query=expr, start=f"{now - 20}", end=f"{now}", step="5")["result"]

    def firing(self) -> set[str]:
        return {each["metric"]["alertname"] for each in self.query('ALERTS{alertstate="firing"}')}

    def wait_for_alerts(self, *alerts: str) -> None:
        wait_for(lambda: set(alerts) <= self.firing(), 60, f"{alerts} to fire, beside {self.firing()}", 0.5)

    def wait_for_end_of(self, *alerts: str) -> None:
        wait_for(lambda: not set(alerts) & self.firing(), 40, f"the end of {alerts}", 0.5)


class Scene(NamedTuple):
    prometheus: Prometheus
    beats: Probed
    redis: RedisServer


@pytest.fixture(scope="module")
def _module_scene() -> Iterator[Scene]:
    spec = {"fast": {"every": 0.5}, "slower": {"every": 2.0}}
    with ExitStack() as stack:
        redis = stack.enter_context(need(lambda: RedisServer(appendonly=True)))
        beats = stack.enter_context(Probed(redis.url, spec=spec, settings={"metrics_per_entry": True, "lease_ttl": 3}))
        beats.settle()
        targets = [f"{LOCALHOST}:{port}" for port in beats.ports]
        prometheus = stack.enter_context(need(lambda: Prometheus(targets)))
        time.sleep(20)  # for the rates
        yield Scene(prometheus, beats, redis)


@pytest.fixture
def scene(_module_scene: Scene) -> Scene:
    """Return the module's scene. Redis and every beat run, even after a failed test."""
    _module_scene.redis.start()
    _module_scene.beats.heal()
    return _module_scene


def test_every_replica_is_scraped_and_no_rule_fails(scene: Scene):
    def targets() -> list[tuple[str, str]]:
        found = scene.prometheus.ask("targets")["activeTargets"]
        return [(each["health"], each["labels"]["job"]) for each in found]

    # On a busy machine a scrape may take longer than its second.
    wait_for(lambda: targets() == [("up", "ha-beat")] * 3, 30, "every target to be up", 0.5)
    judged = [rule for group in scene.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(judged) == len(rules())
    assert [(rule["name"], rule.get("lastError")) for rule in judged if rule["health"] != "ok"] == []


@pytest.mark.parametrize("name", [rule["record"] for rule in rules() if "record" in rule])
def test_recorded_series_has_a_number(scene: Scene, name: str):
    """A quantile without observations would be NaN."""

    def recorded() -> list[float]:
        values = [float(each["value"][1]) for each in scene.prometheus.query(name)]
        return [value for value in values if not math.isnan(value)]

    if name == "ha_beat:leaders:sum":
        wait_for(lambda: recorded() == [1], 30, name, 0.5)
    else:
        assert wait_for(recorded, 30, name, 0.5)


@pytest.mark.parametrize("query", dashboard_queries().items(), ids=lambda item: item[0])
def test_panel_has_data_if_its_series_exist(scene: Scene, query: tuple[str, str]):
    _, expr = query
    if expr.startswith("label_values"):
        found = re.fullmatch(r"label_values\((\w+)(?:\{.*\})?, (\w+)\)", expr)
        assert found
        values = scene.prometheus.ask(f"label/{found[2]}/values", **{"match[]": found[1]})
        assert values == (["ha-beat"] if found[2] == "job" else [])
        return
    for variable, value in VARIABLES.items():
        expr = expr.replace(variable, value)
    drawn = scene.prometheus.range(expr)
    exist = all(scene.prometheus.query(f"count({series})") for series in series_of(expr))
    assert drawn or not exist or expr.endswith(" > 0")
    never = {"ha_beat_skipped_total", "ha_beat_requested_total", "ha_beat_invariant_breaks_total"}
    assert exist or series_of(expr).keys() <= never | {"ha_beat_terms_ended_total", "ha_beat_warnings"}


def test_healthy_cluster_fires_no_alert(scene: Scene):
    wait_for(lambda: not scene.prometheus.firing(), 30, "no alert", 0.5)


def test_killed_leader_is_reported_only_as_a_replica_down(scene: Scene):
    leader = scene.beats.settle()
    leader.kill()
    scene.beats.wait_for_leader(other_than=leader)
    scene.prometheus.wait_for_alerts("HaBeatReplicaDown")
    assert not scene.prometheus.firing() & {"HaBeatNoLeader", "HaBeatGone", "HaBeatOverdue"}
    changed = "sum by (instance) (changes(ha_beat_leader[1m])) > 0"
    assert wait_for(lambda: scene.prometheus.query(changed), 20, "the change of leader on the dashboard", 0.5)
    leader.start()
    scene.beats.settle()
    scene.prometheus.wait_for_end_of("HaBeatReplicaDown")


def test_stopped_redis_fires_its_alerts(scene: Scene):
    scene.redis.stop()
    try:
        scene.prometheus.wait_for_alerts("HaBeatNoLeader", "HaBeatRedisDown")
    finally:
        scene.redis.start()
    scene.prometheus.wait_for_end_of("HaBeatNoLeader", "HaBeatRedisDown")


def test_killing_every_beat_fires_an_alert(scene: Scene):
    for beat in scene.beats:
        beat.kill()
    scene.prometheus.wait_for_alerts("HaBeatGone")
    assert "HaBeatReplicaDown" in scene.prometheus.firing()
