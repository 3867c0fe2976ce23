"""Rules and dashboard ask only for what the endpoint tells, and the rules fire when they should."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ha_beat.monitoring.metrics import DEFINITIONS
from tests.support.servers import PartMissing, need

DEPLOY = Path(__file__).parents[3] / "deploy"
RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "ha-beat.json"

#: Each series of the endpoint with its labels.
SERIES = {
    definition.full_name + suffix: set(definition.labels) | ({"le"} if suffix == "_bucket" else set())
    for definition in DEFINITIONS
    for suffix in (("_bucket", "_sum", "_count") if definition.kind == "histogram" else ("",))
}
#: What Prometheus adds.
ADDED = {"namespace", "job", "instance"}


def panels() -> Iterator[dict[str, Any]]:
    for panel in json.loads(DASHBOARD.read_text())["panels"]:
        yield panel
        yield from panel.get("panels", [])


def dashboard_queries() -> dict[str, str]:
    board = json.loads(DASHBOARD.read_text())
    found = {
        f"{panel['title']} {each['refId']}": each["expr"] for panel in panels() for each in panel.get("targets", [])
    }
    found |= {each["name"]: each["expr"] for each in board["annotations"]["list"]}
    return found | {each["name"]: each["definition"] for each in board["templating"]["list"] if "definition" in each}


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]]


def promtool(*arguments: str) -> str:
    def have() -> str:
        found = shutil.which("promtool")
        if found is None:
            message = "promtool (of Prometheus) is not installed"
            raise PartMissing(message)
        return found

    command = [need(have), *arguments]
    done = subprocess.run(command, cwd=RULES.parent, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def asked_for(expr: str) -> dict[str, set[str]]:
    """The series that a query names, each with the labels by which it chooses."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"\b(ha_beat_\w+)(?:\{([^}]*)\})?", expr):
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]~?", labels))
    return found


def wrong_with(expr: str) -> list[str]:
    wrong = []
    known = set(ADDED)
    for name, labels in asked_for(expr).items():
        if name not in SERIES:
            wrong.append(f"there is no {name}")
            continue
        known |= SERIES[name]
        wrong += [f"{name} has no label {label}" for label in labels - SERIES[name] - ADDED]
    for grouped in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", expr):
        by = {label.strip() for label in grouped.split(",")} - {""}
        if asked_for(expr) and not expr.startswith("label_values"):
            wrong += [f"grouped by {label}, which none of its series has" for label in by - known]
    return wrong


def test_the_check_finds_what_is_wrong():
    assert wrong_with('rate(ha_beat_leeder{job="x"}[5m])') == ["there is no ha_beat_leeder"]
    assert wrong_with('ha_beat_skipped_total{why="x"}') == ["ha_beat_skipped_total has no label why"]
    assert wrong_with("sum by (entry) (ha_beat_leader)") == ["grouped by entry, which none of its series has"]
    assert wrong_with("sum by (le) (rate(ha_beat_lateness_seconds_bucket[5m]))") == []


@pytest.mark.parametrize("query", dashboard_queries().items(), ids=lambda item: item[0])
def test_a_panel_asks_for_what_exists(query):
    name, expr = query
    assert asked_for(expr), f"{name} names no metric"
    assert wrong_with(expr) == []


@pytest.mark.parametrize("panel", [each for each in panels() if each["type"] == "stat"], ids=lambda each: each["title"])
def test_a_number_is_that_of_one_cluster(panel):
    """Two clusters with a leader each are not two leaders; the least of all would hide which one is in trouble."""
    (query,) = panel["targets"]
    assert re.match(r"(sum|max|min) by \(namespace, job\) \(", query["expr"])
    assert query["legendFormat"] == "{{namespace}} {{job}}"


def test_every_query_is_promql(tmp_path):
    """Prometheus' own parser reads them, with Grafana's variables filled in."""
    queries = {name: expr for name, expr in dashboard_queries().items() if not expr.startswith("label_values")}
    filled = [re.sub(r"\$__(rate_)?interval", "1m", expr) for expr in queries.values()]
    told = [{"record": f"query:{n}", "expr": expr} for n, expr in enumerate(filled)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": told}]}))
    promtool("check", "rules", str(file))


def test_every_metric_has_its_place_on_the_dashboard():
    shown = {name for expr in dashboard_queries().values() for name in asked_for(expr)}
    shown = {re.sub(r"_(bucket|sum|count)$", "", name) if name not in _plain() else name for name in shown}
    assert {definition.full_name for definition in DEFINITIONS} - shown == set()


def _plain() -> set[str]:
    return {definition.full_name for definition in DEFINITIONS}


def test_panels_do_not_overlap():
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        at = panel["gridPos"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]
        assert at["x"] + at["w"] <= 24


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_a_rule_asks_for_what_exists(rule):
    recorded = {each["record"] for each in rules() if "record" in each}
    assert wrong_with(re.sub(r"\bha_beat:[\w:]+", "recorded", rule["expr"])) == []
    assert set(re.findall(r"\bha_beat:[\w:]+", rule["expr"])) <= recorded


def test_the_rules_fire_when_they_should_and_only_then():
    promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules.test.yml")


def test_every_alert_is_tested():
    tested = set(re.findall(r"HaBeat\w+", (RULES.parent / "rules.test.yml").read_text()))
    assert {rule["alert"] for rule in rules() if "alert" in rule} - tested == set()


def test_every_alert_is_explained():
    """Each alert has a row, which marks a critical one."""
    page = (DEPLOY.parent / "docs" / "monitoring.md").read_text()
    rows = [line for line in page.splitlines() if line.startswith("| `HaBeat")]
    told = {
        name: "critical" if "(critical)" in row.split("|")[1] else "other"
        for row in rows
        for name in re.findall(r"`(HaBeat\w+)`", row.split("|")[1])
    }
    assert told == {
        rule["alert"]: "critical" if rule["labels"]["severity"] == "critical" else "other"
        for rule in rules()
        if "alert" in rule
    }


def test_the_chart_has_the_same_rules():
    """Helm can't read files outside the chart, so that it has a copy."""
    assert (DEPLOY / "helm" / "ha-beat" / "rules.yml").read_text() == RULES.read_text()


def test_prometheus_reads_its_configuration(tmp_path):
    """With the rules where the Compose file mounts them."""
    configuration = (RULES.parent / "prometheus.yml").read_text().replace("/etc/prometheus", str(RULES.parent))
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration)
    promtool("check", "config", str(file))
