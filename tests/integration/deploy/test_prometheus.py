"""A real Prometheus beside three real beats, with the files that we ship: it scrapes, records, draws and alarms."""

from __future__ import annotations

import json
import math
import re
import time
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
import yaml

from tests.faults.cluster import Replica
from tests.integration.deploy.test_monitoring import RULES, asked_for, dashboard_queries, rules
from tests.integration.monitoring.test_replicas import Probed
from tests.support.servers import LOCALHOST, RedisServer, Server, ServerProcess, find_program, free_port, need, wait_for

pytestmark = [pytest.mark.slow, pytest.mark.timeout(240)]

#: Values of Grafana's variables if none is chosen.
VARIABLES = {"$__rate_interval": "15s", "$__interval": "1m", "$namespace": ".*", "$job": ".*"}


class Prometheus(Server):
    """The shipped configuration and rules, told where the replicas are, and in more of a hurry."""

    START_SECONDS = 30.0

    def __init__(self, targets: list[str]) -> None:
        self.binary = find_program("prometheus")
        super().__init__("prometheus")
        self.port = free_port()
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

    def launch(self) -> ServerProcess:
        command = [
            str(self.binary),
            f"--config.file={self.directory / 'prometheus.yml'}",
            f"--storage.tsdb.path={self.directory / 'data'}",
            f"--web.listen-address={LOCALHOST}:{self.port}",
        ]
        return ServerProcess(command, self.directory / "prometheus.log", cwd=self.directory)

    def answers(self) -> bool:
        with urllib.request.urlopen(f"http://{LOCALHOST}:{self.port}/-/ready", timeout=2) as reply:
            return bool(reply.status == 200)

    def ask(self, path: str, **parameters: str) -> Any:
        """The `data` of the answer. Raises what urllib raises, for a query that it refuses too."""
        url = f"http://{LOCALHOST}:{self.port}/api/v1/{path}?{urllib.parse.urlencode(parameters)}"
        with urllib.request.urlopen(url, timeout=10) as reply:
            return json.load(reply)["data"]

    def query(self, expr: str) -> list[dict[str, Any]]:
        found: list[dict[str, Any]] = self.ask("query", query=expr)["result"]
        return found

    def range(self, expr: str) -> list[dict[str, Any]]:
        """As a panel asks: over some time."""
        now = time.time()
        found: list[dict[str, Any]] = self.ask("query_range", query=expr, start=f"{now - 20}", end=f"{now}", step="5")[
            "result"
        ]
        return found

    def firing(self) -> set[str]:
        return {each["metric"]["alertname"] for each in self.query('ALERTS{alertstate="firing"}')}

    def until_firing(self, alert: str, timeout: float = 60.0) -> None:
        wait_for(lambda: alert in self.firing(), timeout, f"{alert} to fire, beside {self.firing()}", 0.5)


class Scene(NamedTuple):
    prometheus: Prometheus
    beats: Probed
    redis: RedisServer


@pytest.fixture(scope="module")
def scene() -> Iterator[Scene]:
    spec = {"fast": {"every": 0.5}, "slower": {"every": 2.0}}
    with ExitStack() as stack:
        redis = stack.enter_context(need(lambda: RedisServer(appendonly=True)))
        beats = stack.enter_context(Probed(redis.url, spec=spec, settings={"metrics_per_entry": True, "lease_ttl": 3}))
        beats.settle()
        targets = [f"{LOCALHOST}:{port}" for port in beats.ports]
        prometheus = stack.enter_context(need(lambda: Prometheus(targets)))
        time.sleep(20)  # for the rates
        yield Scene(prometheus, beats, redis)


def test_every_replica_is_scraped_and_no_rule_fails(scene: Scene):
    targets = scene.prometheus.ask("targets")["activeTargets"]
    assert [(each["health"], each["labels"]["job"]) for each in targets] == [("up", "ha-beat")] * 3, targets
    judged = [rule for group in scene.prometheus.ask("rules")["groups"] for rule in group["rules"]]
    assert len(judged) == len(rules())
    assert [(rule["name"], rule.get("lastError")) for rule in judged if rule["health"] != "ok"] == []


@pytest.mark.parametrize("name", [rule["record"] for rule in rules() if "record" in rule])
def test_what_is_recorded_is_there(scene: Scene, name: str):
    """And is a number: a quantile of nothing would be NaN."""

    def recorded() -> list[float]:
        values = [float(each["value"][1]) for each in scene.prometheus.query(name)]
        return [value for value in values if not math.isnan(value)]

    assert wait_for(recorded, 30, name, 0.5)
    if name == "ha_beat:leaders:sum":
        assert recorded() == [1]


@pytest.mark.parametrize("query", dashboard_queries().items(), ids=lambda item: item[0])
def test_a_panel_has_something_to_draw(scene: Scene, query: tuple[str, str]):
    """Prometheus takes each query; where all of its series exist, it finds something."""
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
    exist = all(scene.prometheus.query(f"count({series})") for series in asked_for(expr))
    assert drawn or not exist or expr.endswith(" > 0")
    never = {"ha_beat_skipped_total", "ha_beat_requested_total", "ha_beat_invariant_breaks_total"}
    assert exist or asked_for(expr).keys() <= never | {"ha_beat_terms_ended_total", "ha_beat_warnings"}


def test_nothing_is_alarmed_while_all_is_well(scene: Scene):
    wait_for(lambda: not scene.prometheus.firing(), 30, "no alarm", 0.5)


def test_a_dead_leader_is_one_replica_down_and_no_more(scene: Scene):
    leader = scene.beats.settle()
    leader.kill()
    scene.beats.wait_for_leader(other_than=leader)
    scene.prometheus.until_firing("HaBeatReplicaDown")
    assert not scene.prometheus.firing() & {"HaBeatNoLeader", "HaBeatGone", "HaBeatOverdue"}
    changed = "sum by (instance) (changes(ha_beat_leader[1m])) > 0"
    assert wait_for(lambda: scene.prometheus.query(changed), 20, "the change of leader on the dashboard", 0.5)
    _back(scene, leader)


def test_without_redis_nobody_leads_and_somebody_is_woken(scene: Scene):
    scene.redis.stop()
    try:
        scene.prometheus.until_firing("HaBeatNoLeader")
        scene.prometheus.until_firing("HaBeatRedisDown")
    finally:
        scene.redis.start()
    over: Callable[[], bool] = lambda: not scene.prometheus.firing() & {"HaBeatNoLeader", "HaBeatRedisDown"}  # noqa: E731
    wait_for(over, 40, "the alarm to end", 0.5)


def test_when_every_beat_is_killed_somebody_is_woken(scene: Scene):
    for beat in scene.beats:
        beat.kill()
    scene.prometheus.until_firing("HaBeatGone")
    assert "HaBeatReplicaDown" in scene.prometheus.firing()


def _back(scene: Scene, beat: Replica) -> None:
    beat.start()
    scene.beats.settle()
    quiet: Callable[[], bool] = lambda: "HaBeatReplicaDown" not in scene.prometheus.firing()  # noqa: E731
    wait_for(quiet, 30, "the alarm to end", 0.5)
