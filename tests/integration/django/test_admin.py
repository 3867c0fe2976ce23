"""Admin page "Beat cluster", its buttons, and the columns and forms of periodic tasks."""

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from ha_beat.client import ClusterClient
from ha_beat.django import user_requests
from ha_beat.django.entries import RowEntry
from ha_beat.django.queries import is_disabled
from ha_beat.settings import Settings
from ha_beat.store.ledger import LedgerRow
from tests.faults.cluster import BeatCluster
from tests.integration.django.beats import beats
from tests.integration.django.conftest import Site, create_staff
from tests.integration.django.project.app import app
from tests.integration.django.rows import cron, every, fresh, row, soon
from tests.support.servers import wait_for

PAGE = "/admin/ha_beat/cluster/"
DATA = f"{PAGE}data/"
CONTROL = f"{PAGE}control/"
TASKS = "/admin/django_celery_beat/periodictask/"


@pytest.fixture(autouse=True)
def _cluster_of_the_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ClusterClient(app, Settings(cluster="site", redis_url=site.redis.url))
    monkeypatch.setattr("ha_beat.django.cluster_view.cluster", lambda: cluster)


@pytest.fixture
def running(site: Site) -> Iterator[BeatCluster]:
    row("task", interval=every(0.5))
    with beats(site) as cluster:
        cluster.wait_for_leader()
        site.wait_for()
        yield cluster


def client_of(*permissions: str, superuser: bool = False, **options: bool) -> Client:
    """Return the client of a member of staff with these permissions."""
    user = create_staff(*permissions, superuser=superuser)
    client = Client(**options)
    client.force_login(user)
    return client


def page_of(task: PeriodicTask, view: str = "change") -> str:
    return f"{TASKS}{task.pk}/{view}/"


def fields_of(task: PeriodicTask, **fields: str) -> dict[str, Any]:
    """Return the fields of the task's form."""
    shown = {"name": "task", "task": "tick", "enabled": "on", "interval": task.interval_id}
    return {**shown, "args": "[]", "kwargs": "{}", "headers": task.headers, **fields}


def set_ledger_row(site: Site, task: PeriodicTask, verdict: str = "armed", **fields: Any) -> None:
    made = LedgerRow(base=fields.pop("base", datetime.now(UTC)), verdict=verdict, **fields)
    site.redis.client().hset("{ha-beat:site}:ledger", f"e:{task.pk}", made.encoded())


def cells(page: str, column: str) -> list[str]:
    return re.findall(rf"field-{column}[^>]*>(?:<span[^>]*>)?([^<]*)<", page)


def test_page_shows_the_cluster_and_control_needs_its_permission(running):
    client = client_of("view_cluster")

    def complete() -> dict | None:
        answer = client.get(DATA)
        assert answer.status_code == 200
        data = answer.json()
        return data if len(data["members"]) == 2 and data["recent"] and data["upcoming"] else None

    data = wait_for(complete, 20, "both replicas", 0.2)
    assert data["leader"].startswith(running.wait_for_leader().name)
    assert {replica["role"] for replica in data["members"]} == {"leader", "standby"}
    assert (data["recent"][0]["name"], data["recent"][0]["verdict"]) == ("task", "enqueued")
    assert data["upcoming"][0]["name"] == "task"
    assert data["terms"][-1]["ended_ms"] is None
    page = client.get(PAGE)
    assert page.status_code == 200
    assert b"ha-control" not in page.content
    assert client.post(CONTROL, {"action": "pause"}).status_code == 403
    assert "m:paused" not in running.admin.hgetall(running.key("ledger"))
    assert not LogEntry.objects.exists()
    client = client_of("control_cluster")
    assert b"ha-control" in client.get(PAGE).content
    assert client.post(CONTROL, {"action": "pause", "reason": "upgrade"}).json()["ok"]
    paused = client.get(DATA).json()["paused"]
    assert (paused["reason"], paused["by"]) == ("upgrade", "kim (admin)")
    assert client.post(CONTROL, {"action": "resume"}).json()["ok"]
    leader = running.leader()
    assert client.post(CONTROL, {"action": "step_down"}).json()["ok"]
    running.wait_for_leader(other_than=leader)
    running.assert_all_alive()
    assert list(LogEntry.objects.values_list("user__username", flat=True)) == ["kim"] * 3


def test_page_needs_a_permission(site):
    client = client_of()
    answers = (client.get(PAGE), client.get(DATA), Client().get(PAGE))
    assert [answer.status_code for answer in answers] == [403, 403, 302]
    assert b"Beat cluster" not in client.get("/admin/").content


def test_control_needs_a_post_with_a_token_and_a_login(site):
    client = client_of(superuser=True, enforce_csrf_checks=True)
    step_down = {"action": "step_down"}
    answers = (client.post(CONTROL, step_down), client.get(CONTROL, step_down), Client().post(CONTROL, step_down))
    assert [answer.status_code for answer in answers] == [403, 405, 302]


def test_control_reports_an_unknown_action_and_a_missing_leader(site, monkeypatch):
    monkeypatch.setattr(user_requests, "REPLY_TIMEOUT", 0.3)
    client = client_of(superuser=True)
    assert client.post(CONTROL, {"action": "drop"}).status_code == 400
    answer = client.post(CONTROL, {"action": "pause"})
    assert (answer.status_code, bool(answer.json()["line"])) == (503, True)
    assert not LogEntry.objects.exists()


def test_admin_works_without_redis(site):
    row("task", interval=every(60))
    client = client_of(superuser=True)
    site.redis.stop()
    assert client.get(DATA).json()["error"]
    assert client.get(PAGE).status_code == 200
    tasks = client.get(TASKS)
    assert tasks.status_code == 200
    assert b'<li class="warning">' in tasks.content


def test_tasks_show_the_clusters_state_and_run_now(running, site):
    """The task's name looks like one of Django's change messages."""
    task = PeriodicTask.objects.get(name="task")
    task.name = "changed and added"
    task.save()
    site.wait_for(task.name)
    client = client_of(superuser=True)
    page = client.get(TASKS).content.decode()
    assert re.search(r"enqueued, (on time|\d+\.\d s late)", page)
    assert re.search(r"column-enabled.*column-cluster_state.*column-scheduler", page, re.DOTALL)
    assert f"by {running.wait_for_leader().name}" in page
    form = client.get(page_of(task)).content.decode()
    assert "field-next_due" in form
    assert 'name="misfire"' in form

    def enqueued() -> bool:
        answer = client.post(TASKS, {"action": "run_now", "_selected_action": [task.pk]}, follow=True)
        assert answer.status_code == 200
        return LogEntry.objects.filter(object_id=str(task.pk)).exists()

    wait_for(enqueued, 10, "it to run", 0.5)
    assert len([headers for headers in site.messages() if headers["ha_beat"].get("manual")]) == 1
    history = client.get(page_of(task, "history"))
    message = LogEntry.objects.get(object_id=str(task.pk)).change_message
    assert message in history.content.decode()
    assert message.startswith("enqueued changed and added as tick")
    (record,) = [record for record in running.journal() if record.get("kind") == "manual"]
    assert (record["entry"], record["name"], record["asked_by"]) == (str(task.pk), task.name, "kim (admin)")
    (recent,) = [line for line in client.get(DATA).json()["recent"] if line["kind"] == "manual"]
    assert (recent["name"], recent["asked_by"]) == (task.name, "kim (admin)")
    client.post(TASKS, {"action": "pause_tasks", "_selected_action": [task.pk]}, follow=True)
    assert "paused" in client.get(TASKS).content.decode().split("cluster_state", 2)[2]
    assert "by kim (admin)" in client.get(page_of(task)).content.decode()
    task.enabled = False
    task.save()
    answer = client.post(TASKS, {"action": "resume_tasks", "_selected_action": [task.pk]}, follow=True)
    assert "is resumed" in answer.content.decode()
    answer = client.post(TASKS, {"action": "run_now", "_selected_action": [task.pk]}, follow=True)
    assert "changed and added is disabled" in answer.content.decode(), re.findall(
        r"messagelist.*?</ul>", answer.content.decode(), re.DOTALL
    )
    assert is_disabled(task.name)
    assert is_disabled(str(task.pk))


def test_misfire_rules_are_stored_in_the_headers_and_not_sent(site):
    task = row("task", interval=every(60), headers='{"x": "y"}')
    client = client_of(superuser=True)
    answer = client.post(page_of(task), fields_of(task, misfire="skip", misfire_grace="30"))
    assert answer.status_code == 302, answer.content.decode()
    assert json.loads(fresh(task).headers) == {"x": "y", "ha_beat": {"misfire": "skip", "misfire_grace": 30.0}}
    entry = RowEntry(task, app)
    assert entry.options["headers"] == {"x": "y", "periodic_task_name": "task"}
    assert entry.options["ha_beat"] == {"misfire": "skip", "misfire_grace": 30.0}
    assert '<option value="skip" selected>' in client.get(page_of(task)).content.decode()
    client.post(page_of(task), fields_of(task, misfire_grace="30", overlap="skip", overlap_timeout="60", jitter="5"))
    own = {"misfire_grace": 30.0, "overlap": "skip", "overlap_timeout": 60.0, "jitter": 5.0}
    assert json.loads(fresh(task).headers) == {"x": "y", "ha_beat": own}


@pytest.mark.parametrize("own", ['{"misfire": "never"}', '{"misfire_gracce": 3}', '"skip"'])
def test_form_refuses_invalid_misfire_rules(site, own):
    """Beat would leave out the task, and only log that."""
    task = row("task", interval=every(60))
    answer = client_of(superuser=True).post(page_of(task), fields_of(task, headers=f'{{"ha_beat": {own}}}'))
    assert answer.status_code == 200
    assert re.findall(r"errors field-(\w+)", answer.content.decode()) == ["headers"]
    assert fresh(task).headers == "{}"


def test_viewer_sees_a_tasks_misfire_rules(site):
    task = row("task", interval=every(60), headers='{"ha_beat": {"misfire": "skip", "misfire_grace": 30}}')
    form = client_of("view_periodictask").get(page_of(task)).content.decode()
    assert 'name="misfire"' not in form
    assert re.search(r'field-misfire.*?<div class="readonly">run none', form, re.DOTALL)
    assert re.search(r'field-misfire_grace.*?<div class="readonly">30', form, re.DOTALL)


def test_task_that_never_ran_shows_no_last_run(site):
    """django-celery-beat's entry sets a missing last run to 30 years before the start."""
    set_ledger_row(site, row("task", interval=every(60), start_time=soon(-30)))
    page = client_of(superuser=True).get(TASKS).content.decode()
    assert cells(page, "last_run_at") == ["-"]
    assert cells(page, "next_due") != ["-"]


def test_list_needs_as_many_queries_for_50_tasks_as_for_2(site):
    client = client_of(superuser=True)
    counted = []
    for kinds in (1, 25):
        for number in range(kinds):
            set_ledger_row(site, row(f"interval {kinds} {number}", interval=every(60 + number)))
            set_ledger_row(site, row(f"crontab {kinds} {number}", crontab=cron(str(number))))
        client.get(TASKS)
        with CaptureQueriesContext(connection) as queries:
            assert client.get(TASKS).status_code == 200
        counted.append(len(queries))
    assert counted[0] == counted[1] <= 10


def test_list_shows_old_verdicts_from_the_ledger(site):
    """The newest records of the journal belong to other tasks."""
    due = datetime.now(UTC) - timedelta(days=1)
    late = round(due.timestamp() * 1000) + 2500
    ran = {"scheduled_at": due, "dispatched_ms": late}
    set_ledger_row(site, row("daily", interval=every(86400)), "enqueued", epoch=7, **ran)
    set_ledger_row(site, row("older", interval=every(86400)), "enqueued", epoch=6, **ran)
    set_ledger_row(site, row("skipped", interval=every(86400)), "skipped", scheduled_at=due, reason="missed", epoch=7)
    site.redis.client().hset("{ha-beat:site}:lease", mapping={"holder": "host-a:12", "epoch": 7, "state": "held"})
    page = client_of(superuser=True).get(TASKS + "?o=1").content.decode()
    states = cells(page, "cluster_state")
    assert [state.startswith("enqueued, 2.5 s late") for state in states] == [True, True, False]
    assert states[2].startswith("skipped (")
    assert [" by host-a:12" in title for title in re.findall(r'title="([^"]* by [^"]*)"', page)] == [True, True]
