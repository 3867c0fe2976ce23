"""The admin: the page 'Beat cluster', its buttons, and the columns of the periodic tasks."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import Permission, User
from django.db import connection
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django_celery_beat.models import PeriodicTask

from ha_beat.client import ClusterClient
from ha_beat.django import cluster_view as access
from ha_beat.settings import Settings
from ha_beat.store.ledger import LedgerRow
from tests.faults.cluster import BeatCluster
from tests.integration.django.beats import beats, cron, every, fresh, row, soon
from tests.integration.django.conftest import Site
from tests.integration.django.project.app import app
from tests.support.servers import wait_for

PAGE = "/admin/ha_beat/cluster/"
CONTROL = f"{PAGE}control/"
TASKS = "/admin/django_celery_beat/periodictask/"


@pytest.fixture(autouse=True)
def _cluster_of_the_site(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    cluster = ClusterClient(app, Settings(cluster="site", redis_url=site.redis.url))
    monkeypatch.setattr("ha_beat.django.admin.cluster", lambda: cluster)


@pytest.fixture
def running(site: Site) -> Iterator[BeatCluster]:
    row("task", interval=every(0.5))
    with beats(site) as cluster:
        cluster.wait_for_leader()
        wait_for(site.names, 40, "a message", 0.1)
        yield cluster


def client_of(*permissions: str, superuser: bool = False, **options: bool) -> Client:
    """A browser of a member of staff with these permissions."""
    user = User.objects.create_user("kim", is_staff=True, is_superuser=superuser)
    user.user_permissions.set(Permission.objects.filter(codename__in=permissions))
    assert user.user_permissions.count() == len(permissions)
    client = Client(**options)
    client.force_login(user)
    return client


def test_the_page_shows_the_cluster_and_needs_a_permission(running):
    data = _data_with_two_replicas(client_of("view_cluster"))
    leader = running.leader()
    assert leader is not None
    assert data["leader"].startswith(leader.name)
    assert {replica["role"] for replica in data["members"]} == {"leader", "standby"}
    assert data["recent"][0]["name"] == "task"
    assert data["recent"][0]["verdict"] == "enqueued"
    assert data["upcoming"][0]["name"] == "task"
    assert data["terms"][-1]["ended_ms"] is None


def _data_with_two_replicas(client: Client) -> dict:
    def look() -> dict | None:
        answer = client.get(f"{PAGE}data/")
        assert answer.status_code == 200
        data = answer.json()
        return data if len(data["members"]) == 2 and data["recent"] and data["upcoming"] else None

    return wait_for(look, 20, "both replicas", 0.2)


def test_who_may_only_look_sees_no_button_and_is_refused(running):
    client = client_of("view_cluster")
    page = client.get(PAGE)

    assert page.status_code == 200
    assert b"ha-control" not in page.content
    assert client.post(CONTROL, {"action": "pause"}).status_code == 403
    assert "m:paused" not in running.admin.hgetall(running.key("ledger"))
    assert not LogEntry.objects.exists()


def test_without_any_permission_there_is_no_page(site):
    client = client_of()

    assert client.get(PAGE).status_code == 403
    assert client.get(f"{PAGE}data/").status_code == 403
    assert b"Beat cluster" not in client.get("/admin/").content
    assert Client().get(PAGE).status_code == 302


def test_pause_resume_and_step_down_are_done_and_logged(running, site):
    client = client_of("control_cluster")
    assert b"ha-control" in client.get(PAGE).content

    assert client.post(CONTROL, {"action": "pause", "reason": "upgrade"}).json()["ok"]
    data = client.get(f"{PAGE}data/").json()
    assert data["paused"]["reason"] == "upgrade"
    assert data["paused"]["by"] == "kim (admin)"
    assert client.post(CONTROL, {"action": "resume"}).json()["ok"]
    leader = running.leader()
    assert client.post(CONTROL, {"action": "step_down"}).json()["ok"]
    running.wait_for_leader(other_than=leader)
    running.assert_all_alive()

    logged = list(LogEntry.objects.order_by("pk").values_list("user__username", "change_message"))
    assert [user for user, _ in logged] == ["kim"] * 3
    assert [message.partition(":")[0] for _, message in logged] == [
        "Paused the cluster",
        "Resumed the cluster",
        "Stepped the leader down",
    ]


def test_a_request_without_token_or_by_get_does_nothing(site):
    client = client_of(superuser=True, enforce_csrf_checks=True)

    assert client.post(CONTROL, {"action": "step_down"}).status_code == 403
    assert client.get(CONTROL, {"action": "step_down"}).status_code == 405
    assert Client().post(CONTROL, {"action": "step_down"}).status_code == 302


def test_an_unknown_action_and_no_leader_are_said(site, monkeypatch):
    monkeypatch.setattr(access, "ANSWER_WITHIN", 0.3)
    client = client_of(superuser=True)

    assert client.post(CONTROL, {"action": "drop"}).status_code == 400
    answer = client.post(CONTROL, {"action": "pause"})
    assert answer.status_code == 503
    assert "no leader answered" in answer.json()["line"]
    assert not LogEntry.objects.exists()


def test_without_redis_the_admin_says_so_and_works_on(site):
    row("task", interval=every(60))
    client = client_of(superuser=True)
    site.redis.stop()

    assert client.get(f"{PAGE}data/").json()["error"]
    assert client.get(PAGE).status_code == 200
    tasks = client.get(TASKS)
    assert tasks.status_code == 200
    assert b"The beat cluster is unreachable" in tasks.content


def test_the_list_and_the_form_of_tasks_show_what_the_cluster_knows(running, site):
    task = PeriodicTask.objects.get(name="task")
    client = client_of(superuser=True)
    page = client.get(TASKS).content.decode()

    assert "column-last_verdict" in page
    assert re.search(r"enqueued, (on time|\d+\.\d s late)", page)
    assert re.search(r"column-enabled.*column-last_verdict.*column-next_due.*column-scheduler", page, re.DOTALL)
    leader = running.leader()
    assert leader is not None
    assert f'field-enqueued_by">{leader.name}' in page
    form = client.get(f"{TASKS}{task.pk}/change/").content.decode()
    assert "Next due" in form
    assert 'name="misfire"' in form


def test_a_task_is_run_now_by_the_leader(running, site):
    task = PeriodicTask.objects.get(name="task")
    client = client_of(superuser=True)
    answer = client.post(TASKS, {"action": "run_now", "_selected_action": [task.pk]}, follow=True)

    assert answer.status_code == 200
    manual = [headers for headers in site.messages() if headers["ha_beat"].get("manual")]
    assert len(manual) == 1
    assert LogEntry.objects.filter(object_id=str(task.pk)).count() == 1


def test_misfire_rules_are_kept_in_the_headers(site):
    """Beside those that are there, and out of the message."""
    task = row("task", interval=every(60), headers='{"x": "y"}')
    client = client_of(superuser=True)
    fields = {
        "name": "task",
        "task": "tick",
        "enabled": "on",
        "interval": task.interval_id,
        "args": "[]",
        "kwargs": "{}",
        "headers": '{"x": "y"}',
        "misfire": "skip",
        "misfire_grace": "30",
    }
    answer = client.post(f"{TASKS}{task.pk}/change/", fields)

    assert answer.status_code == 302, answer.context["adminform"].errors
    assert json.loads(fresh(task).headers) == {"x": "y", "ha_beat": {"misfire": "skip", "misfire_grace": 30.0}}
    from ha_beat.django.entries import RowEntry

    entry = RowEntry(task, app)
    assert entry.options["headers"] == {"x": "y", "periodic_task_name": "task"}
    assert entry.options["ha_beat"] == {"misfire": "skip", "misfire_grace": 30.0}

    form = client.get(f"{TASKS}{task.pk}/change/").content.decode()
    assert '<option value="skip" selected>' in form
    answer = client.post(f"{TASKS}{task.pk}/change/", {**fields, "headers": fresh(task).headers, "misfire": ""})
    assert json.loads(fresh(task).headers) == {"x": "y", "ha_beat": {"misfire_grace": 30.0}}


def known(site: Site, task: PeriodicTask, verdict: str = "armed", **fields: Any) -> None:
    """The ledger has this of the task."""
    made = LedgerRow(base=fields.pop("base", datetime.now(UTC)), verdict=verdict, **fields)
    site.redis.client().hset("{ha-beat:site}:ledger", f"e:{task.pk}", made.encoded())


def cells(page: str, column: str) -> list[str]:
    return re.findall(rf"field-{column}[^>]*>(?:<span[^>]*>)?([^<]*)<", page)


def test_a_task_that_never_ran_is_not_shown_as_one_that_did(site):
    """To compute what is due next, django-celery-beat's entry fills in a last run, with a start 30 years ago."""
    known(site, row("task", interval=every(60), start_time=soon(-30)))
    page = client_of(superuser=True).get(TASKS).content.decode()

    assert cells(page, "last_run_at") == ["-"]
    assert cells(page, "next_due") != ["-"]


def test_the_list_asks_for_all_its_tasks_at_once(site):
    """As many queries for fifty as for two, and of the ledger only what is shown."""
    client = client_of(superuser=True)
    counted = []
    for kinds in (1, 25):
        for number in range(kinds):
            known(site, row(f"interval {kinds} {number}", interval=every(60 + number)))
            known(site, row(f"crontab {kinds} {number}", crontab=cron(str(number))))
        client.get(TASKS)
        with CaptureQueriesContext(connection) as queries:
            assert client.get(TASKS).status_code == 200
        counted.append(len(queries))

    assert counted[0] == counted[1] <= 10


def test_what_became_of_a_task_long_ago_is_in_the_list(site):
    """The journal's newest records are all of others: the ledger knows the verdict and how late it was."""
    due = datetime.now(UTC) - timedelta(days=1)
    late = round(due.timestamp() * 1000) + 2500
    for epoch, name in ((7, "daily"), (6, "older")):
        known(site, row(name, interval=every(86400)), "enqueued", scheduled_at=due, dispatched_ms=late, epoch=epoch)
    known(site, row("skipped", interval=every(86400)), "skipped", scheduled_at=due, reason="missed", epoch=7)
    site.redis.client().hset("{ha-beat:site}:lease", mapping={"holder": "host-a:12", "epoch": 7, "state": "held"})
    page = client_of(superuser=True).get(TASKS + "?o=1").content.decode()

    assert cells(page, "last_verdict") == ["enqueued, 2.5 s late", "enqueued, 2.5 s late", "skipped (missed)"]
    assert cells(page, "enqueued_by") == ["host-a:12", "-", "host-a:12"]


def test_what_was_run_now_is_in_the_tasks_history(running):
    """In words, whatever the task is called: Django reads a list there as one of its own."""
    task = PeriodicTask.objects.get(name="task")
    task.name = "changed and added"
    task.save()
    client = client_of(superuser=True)

    def enqueued() -> bool:
        client.post(TASKS, {"action": "run_now", "_selected_action": [task.pk]})
        return LogEntry.objects.filter(object_id=str(task.pk)).exists()

    wait_for(enqueued, 10, "it to run", 0.5)
    history = client.get(f"{TASKS}{task.pk}/history/")
    assert history.status_code == 200
    assert LogEntry.objects.filter(object_id=str(task.pk))[0].change_message in history.content.decode()


@pytest.mark.parametrize(
    ("own", "said"),
    [('{"misfire": "never"}', "misfire is"), ('{"misfire_gracce": 3}', "no key"), ('"skip"', "must be a dict")],
)
def test_rules_that_would_keep_a_task_from_running_are_refused(site, own, said):
    """With them in its headers the task would be left out, which only beat's log says."""
    task = row("task", interval=every(60))
    fields = {"name": "task", "task": "tick", "interval": task.interval_id, "args": "[]", "kwargs": "{}"}
    headers = f'{{"ha_beat": {own}}}'
    answer = client_of(superuser=True).post(f"{TASKS}{task.pk}/change/", {**fields, "headers": headers})

    assert answer.status_code == 200
    (complaint,) = re.findall(r'<ul class="errorlist"[^>]*><li>(.*?)</li>', answer.content.decode())
    assert said in complaint
    assert fresh(task).headers == "{}"


def test_who_may_only_look_sees_a_tasks_own_rules(site):
    task = row("task", interval=every(60), headers='{"ha_beat": {"misfire": "skip", "misfire_grace": 30}}')
    form = client_of("view_periodictask").get(f"{TASKS}{task.pk}/change/").content.decode()

    assert 'name="misfire"' not in form
    assert "run none" in form
    assert re.search(r'field-misfire_grace.*?<div class="readonly">30', form, re.DOTALL)
