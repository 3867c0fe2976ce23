"""Rules and dashboard: they query only existing metrics, and the rules fire in the right cases."""

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
import yaml

from ha_beat.monitoring.metrics import DEFINITIONS
from tests.support.commands import DEPLOY, ROOT, output
from tests.support.servers import find_program, need

RULES = DEPLOY / "prometheus" / "rules.yml"
DASHBOARD = DEPLOY / "grafana" / "dashboards" / "ha-beat.json"

#: Series of the endpoint with their labels.
SERIES = {
    definition.full_name + suffix: set(definition.labels) | ({"le"} if suffix == "_bucket" else set())
    for definition in DEFINITIONS
    for suffix in (("_bucket", "_sum", "_count") if definition.kind == "histogram" else ("",))
}
#: Labels that Prometheus adds.
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


def promtool(*arguments: object) -> None:
    output(need(lambda: find_program("promtool")), *arguments, cwd=RULES.parent)


def series_of(expr: str) -> dict[str, set[str]]:
    """Return each series of a query with the labels that it selects by."""
    found: dict[str, set[str]] = {}
    for name, labels in re.findall(r"\b(ha_beat_\w+)(?:\{([^}]*)\})?", expr):
        found.setdefault(name, set()).update(re.findall(r"(\w+)\s*[=!]~?", labels))
    return found


def faults_of(expr: str) -> list[str]:
    wrong = []
    known = set(ADDED)
    for name, labels in series_of(expr).items():
        if name not in SERIES:
            wrong.append(f"there is no {name}")
            continue
        known |= SERIES[name]
        wrong += [f"{name} has no label {label}" for label in labels - SERIES[name] - ADDED]
    for grouped in re.findall(r"\b(?:by|without|on)\s*\(([^)]*)\)", expr):
        by = {label.strip() for label in grouped.split(",")} - {""}
        if series_of(expr) and not expr.startswith("label_values"):
            wrong += [f"grouped by {label}, which none of its series has" for label in by - known]
    return wrong


@pytest.mark.parametrize(
    ("expr", "faults"),
    [
        ('rate(ha_beat_leeder{job="x"}[5m])', ["there is no ha_beat_leeder"]),
        ('ha_beat_skipped_total{why="x"}', ["ha_beat_skipped_total has no label why"]),
        ("sum by (entry) (ha_beat_leader)", ["grouped by entry, which none of its series has"]),
        ("sum by (le) (rate(ha_beat_lateness_seconds_bucket[5m]))", []),
    ],
)
def test_check_finds_the_faults_of_a_query(expr, faults):
    assert faults_of(expr) == faults


@pytest.mark.parametrize(("name", "expr"), dashboard_queries().items())
def test_panel_queries_existing_series(name, expr):
    assert series_of(expr), f"{name} names no metric"
    assert faults_of(expr) == []


@pytest.mark.parametrize("panel", [each for each in panels() if each["type"] == "stat"], ids=lambda each: each["title"])
def test_number_is_that_of_one_cluster(panel):
    """A sum over two clusters would show two leaders, and a minimum would not show which cluster has a fault."""
    (query,) = panel["targets"]
    assert re.match(r"(sum|max|min) by \(namespace, job\) \(", query["expr"])
    assert query["legendFormat"] == "{{namespace}} {{job}}"


def test_every_query_is_promql(tmp_path):
    """Prometheus' parser reads them once Grafana's variables are replaced."""
    queries = {name: expr for name, expr in dashboard_queries().items() if not expr.startswith("label_values")}
    filled = [re.sub(r"\$__(rate_)?interval", "1m", expr) for expr in queries.values()]
    recorded = [{"record": f"query:{n}", "expr": expr} for n, expr in enumerate(filled)]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": recorded}]}))
    promtool("check", "rules", file)


def test_every_metric_is_on_the_dashboard():
    names = {definition.full_name for definition in DEFINITIONS}
    shown = {name for expr in dashboard_queries().values() for name in series_of(expr)}
    assert names <= shown | {re.sub(r"_(bucket|sum|count)$", "", name) for name in shown - names}


def test_panels_do_not_overlap():
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        at = panel["gridPos"]
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} overlaps {taken[cell]}"
            taken[cell] = panel["title"]
        assert at["x"] + at["w"] <= 24


@pytest.mark.parametrize("rule", rules(), ids=lambda rule: rule.get("alert") or rule["record"])
def test_rule_queries_existing_series(rule):
    recorded = {each["record"] for each in rules() if "record" in each}
    assert faults_of(re.sub(r"\bha_beat:[\w:]+", "recorded", rule["expr"])) == []
    assert set(re.findall(r"\bha_beat:[\w:]+", rule["expr"])) <= recorded


def test_rules_fire_in_exactly_the_cases_of_their_tests():
    promtool("check", "rules", "rules.yml")
    promtool("test", "rules", "rules.test.yml")


def test_every_alert_is_tested_and_documented_with_its_severity():
    alerts = {rule["alert"]: rule["labels"]["severity"] == "critical" for rule in rules() if "alert" in rule}
    assert alerts.keys() <= set(re.findall(r"HaBeat\w+", (RULES.parent / "rules.test.yml").read_text()))
    page = (ROOT / "docs" / "monitoring.md").read_text()
    cells = [line.split("|")[1] for line in page.splitlines() if line.startswith("| `HaBeat")]
    assert alerts == {name: "(critical)" in cell for cell in cells for name in re.findall(r"`(HaBeat\w+)`", cell)}


def test_chart_has_the_same_rules():
    """Helm can't read files outside the chart, so it has a copy."""
    assert (DEPLOY / "helm" / "ha-beat" / "rules.yml").read_text() == RULES.read_text()


def test_prometheus_reads_its_configuration(tmp_path):
    """The rules are in the folder that the Compose file mounts."""
    configuration = (RULES.parent / "prometheus.yml").read_text().replace("/etc/prometheus", str(RULES.parent))
    file = tmp_path / "prometheus.yml"
    file.write_text(configuration)
    promtool("check", "config", file)
