"""The command line under Celery's own, against real beats and a real Redis."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

import pytest
from celery import Celery
from click.testing import CliRunner, Result
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from ha_beat.cli.celery_command import ha_beat
from ha_beat.clock import SystemClock
from tests.faults.cluster import BeatCluster, base_environment
from tests.support.servers import LOCALHOST, RedisServer, free_port, need, wait_for

SPEC = {"fast": {"every": 0.5}, "nightly-report": {"every": 86400}}

COMMANDS = {
    "status": [],
    "check": [],
    "history": [],
    "next": [],
    "settings": [],
    "doctor": [],
    "step-down": [],
    "pause": [],
    "resume": [],
    "run": ["fast"],
    "backfill": ["fast", "--from", "2026-01-01", "--to", "2026-01-02"],
}


def invoke(app: Celery, *args: str) -> Result:
    """Run `ha-beat ARGS` as Celery would, with its context object."""
    return CliRunner().invoke(ha_beat, list(args), obj=SimpleNamespace(app=app))


def app_for(url: str, **config: Any) -> Celery:
    app = Celery("tick", broker=url, set_as_current=False)
    app.conf.update(ha_beat_cluster="tick", beat_scheduler="ha_beat", **config)
    app.conf.beat_schedule = {name: {"task": "tick", "schedule": line["every"]} for name, line in SPEC.items()}
    return app


@pytest.fixture(scope="module")
def server() -> Iterator[RedisServer]:
    with need(lambda: RedisServer(appendonly=True)) as server:
        yield server


@pytest.fixture(scope="module")
def cluster(server: RedisServer) -> Iterator[BeatCluster]:
    config = {"beat_scheduler": "ha_beat"}
    settings = {"lease_ttl": 3, "poll_interval": 0.05}
    with BeatCluster(server.url, spec=SPEC, replicas=3, settings=settings, config=config) as beats:
        beats.wait_until_up()
        wait_for(lambda: "fast" in beats.ledger(), what="the schedule in the ledger")
        assert beats.admin is not None
        wait_for(lambda: beats.admin and beats.admin.hlen(beats.key("members")) == 3, 20, "three members")
        yield beats


@pytest.fixture
def app(server: RedisServer) -> Celery:
    return app_for(server.url)


def test_a_watch_outlives_an_outage_and_ends_quietly(monkeypatch: pytest.MonkeyPatch) -> None:
    """An outage is what one watches for; Ctrl-C is how it is meant to end."""
    waits = []

    def sleep(_: object, seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SystemClock, "sleep", sleep)
    away = app_for(f"redis://127.0.0.1:{free_port()}/0")
    watched = invoke(away, "status", "--watch", "--interval", "7")
    assert watched.exit_code == 0, watched.output
    assert watched.output.count("Redis can't be asked at redis://127.0.0.1") == 2
    assert waits == [7, 7]
    assert invoke(away, "status").exit_code == 2


def test_status_names_the_leader_and_every_replica(cluster: BeatCluster, app: Celery) -> None:
    cluster.wait_for_leader()
    result = invoke(app, "status")
    assert result.exit_code == 0, result.output
    lease = cluster.lease()
    assert lease["holder"] in result.output
    assert all(replica.name in result.output for replica in cluster)
    data = json.loads(invoke(app, "status", "--json").output)
    assert data["leader"] == lease["holder"]
    assert len(data["members"]) == 3


def test_check_says_who_leads_and_exits_with_0(cluster: BeatCluster, app: Celery) -> None:
    cluster.wait_for_leader()
    result = invoke(app, "check")
    assert result.exit_code == 0, result.output
    assert "leads" in result.output
    assert invoke(app, "check", "--replica", "beat-1").exit_code == 0
    assert invoke(app, "check", "--replica", "beat-9").exit_code == 1


def test_history_tells_of_an_entry_and_suggests_for_an_unknown_one(cluster: BeatCluster, app: Celery) -> None:
    wait_for(lambda: any(r.get("entry") == "fast" for r in cluster.journal()), what="a record")
    result = invoke(app, "history", "fast", "--limit", "3", "--json")
    assert result.exit_code == 0
    records = json.loads(result.output)
    assert {record["entry"] for record in records} == {"fast"}
    assert len(records) <= 3
    unknown = invoke(app, "history", "nightly-repotr")
    assert unknown.exit_code == 1
    assert "nightly-report" in unknown.output
    assert "acquired" in invoke(app, "history", "--limit", "10000").output


def test_next_lists_entries_by_due_time(cluster: BeatCluster, app: Celery) -> None:
    entries = [line["name"] for line in json.loads(invoke(app, "next", "--json").output)]
    assert entries[0] == "fast"
    assert "nightly-report" in entries
    assert invoke(app, "next", "fast").exit_code == 0


def test_settings_show_where_each_was_set_and_no_password(app: Celery) -> None:
    secret = app_for("redis://:hunter2@127.0.0.1:1/0", ha_beat_redis_url="redis://:hunter2@127.0.0.1:1/0")
    result = invoke(secret, "settings")
    assert result.exit_code == 0
    assert "hunter2" not in result.output
    assert "ha_beat_lease_ttl" in result.output
    assert json.loads(invoke(app, "settings", "--json").output)["cluster"]["source"] == "ha_beat_cluster"


def test_doctor_finds_a_sound_cluster_sound(cluster: BeatCluster, app: Celery) -> None:
    cluster.wait_for_leader()
    result = invoke(app, "doctor")
    found = {f["subject"]: f for f in json.loads(invoke(app, "doctor", "--json").output)}
    assert found["dispatch"]["text"].startswith("atomic")
    assert found["persistence"]["level"] == "ok"
    assert found["eviction policy"]["level"] == "ok"
    assert found["invariants"]["level"] == "ok"
    assert found["lease's store"]["level"] == "ok"
    failed = [line for line in result.output.splitlines() if line.startswith("FAIL")]
    # The test's own app has another configuration source than the replicas'.
    assert [line for line in failed if "belongs to the app" not in line] == []


def test_doctor_finds_an_app_that_is_set_to_another_store(
    server: RedisServer, cluster: BeatCluster, redis_server: RedisServer
) -> None:
    """Whose replicas would not lead, and why not."""
    cluster.wait_for_leader()
    wait_for(lambda: server.admin.exists(cluster.key("store")), 30, "the mark")
    result = invoke(app_for(server.url, ha_beat_redis_url=redis_server.url), "doctor", "--timeout", "0.5")
    assert result.exit_code == 1
    (line,) = [line for line in result.output.splitlines() if line.startswith("FAIL  lease's store: ")]
    for part in (f":{server.port}/0", f":{redis_server.port}/0", cluster.key("store")):
        assert part in line


def test_step_down_to_a_replica_by_name(cluster: BeatCluster, app: Celery) -> None:
    """The replica that was named leads next, every time, though another one waits as well."""
    for _ in range(3):
        leader = cluster.wait_for_leader()
        target = next(r for r in cluster if r is not leader)
        result = invoke(app, "step-down", "--to", target.name)
        assert result.exit_code == 0, result.output
        assert f"{target.name}:" in result.output
        assert cluster.lease()["holder"].startswith(target.name)
    wrong = invoke(app, "step-down", "--to", "baet-1")
    assert wrong.exit_code == 2
    assert "did you mean beat-" in wrong.output


def test_pause_run_and_resume_say_what_they_did(cluster: BeatCluster, app: Celery) -> None:
    paused = invoke(app, "pause", "--reason", "upgrade")
    assert paused.exit_code == 0, paused.output
    assert "leads" in paused.output
    assert "upgrade" in invoke(app, "status").output
    assert "upgrade" in invoke(app, "check").output
    assert invoke(app, "pause").exit_code == 1
    ran = invoke(app, "run", "nightly-report")
    assert ran.exit_code == 0
    assert "nightly-report" in ran.output
    resumed = invoke(app, "resume")
    assert resumed.exit_code == 0
    assert invoke(app, "resume").exit_code == 1
    unknown = invoke(app, "run", "nightly-reprot")
    assert unknown.exit_code == 1
    assert "did you mean nightly-report" in unknown.output


def test_backfill_shows_each_instant(cluster: BeatCluster, app: Celery) -> None:
    args = ["backfill", "nightly-report", "--from", "2026-01-01", "--to", "2026-01-03"]
    planned = invoke(app, *args, "--dry-run")
    assert planned.exit_code == 1
    assert "needs force" in planned.output
    assert "would enqueue 2 of 2" in invoke(app, *args, "--dry-run", "--force").output
    assert invoke(app, "backfill", "fast", "--from", "2026-01-02", "--to", "2026-01-01").exit_code == 2


def test_the_real_celery_command_finds_the_plugin(server: RedisServer, cluster: BeatCluster) -> None:
    """`celery -A proj ha-beat check` works from a shell, for probes and cron."""
    command = [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "ha-beat", "check"]
    env = base_environment({"BROKER_URL": server.url, "HA_BEAT_CLUSTER": "tick"})
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)
    if "No such command" in done.stderr:
        pytest.fail("the entry point is missing: install the package again")
    assert done.returncode == 0, done.stderr
    assert "leads" in done.stdout


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "settings"])
def test_without_redis_there_is_one_clear_line_and_exit_status_2(command: str) -> None:
    app = app_for(f"redis://:secret@{LOCALHOST}:{free_port()}/0")
    began = time.monotonic()
    result = invoke(app, command, *COMMANDS[command])
    assert result.exit_code == 2
    assert len(result.output.strip().splitlines()) == 1
    assert "Redis can't be asked" in result.output
    assert "secret" not in result.output
    assert time.monotonic() - began < 30


def test_wrong_settings_are_one_line_each_and_exit_status_2() -> None:
    result = invoke(app_for("redis://", ha_beat_lease_tl=3, ha_beat_batch_size="many"), "status")
    assert result.exit_code == 2
    assert "ha_beat_lease_ttl" in result.output
    assert "ha_beat_batch_size" in result.output


def test_without_a_leader_nothing_is_asked_for_long_and_nothing_stays(redis_server: RedisServer) -> None:
    app = app_for(redis_server.url)
    result = invoke(app, "pause", "--timeout", "0.5")
    assert result.exit_code == 1
    assert "nobody leads" in result.output
    assert redis_server.admin.hlen("{ha-beat:tick}:requests") == 0
    assert invoke(app, "check").exit_code == 1
    assert invoke(app, "doctor", "--timeout", "0.5").exit_code == 1


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_has_help_with_an_example(command: str) -> None:
    result = CliRunner().invoke(ha_beat, [command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"ha-beat {command}" in result.output


def test_a_wrong_command_is_answered_with_the_nearest() -> None:
    result = CliRunner().invoke(ha_beat, ["stauts"])
    assert result.exit_code == 2
    assert "status" in result.output


ARGUMENT = st.one_of(
    st.sampled_from(
        [
            *COMMANDS,
            *("--json", "--help", "--limit", "--from", "--to", "--since", "--timeout", "--dry-run", "--force", "--to"),
            *("--verdict", "skipped", "--replica", "--here", "--reason", "0.1", "-1", "1e309", "nan", "inf", "fast"),
            *("2026-01-01", "9999-12-31T23:59:59+14:00", "0001-01-01T00:00:00-14:00", "2026-13-01", "--", "-h"),
        ]
    ),
    st.text(max_size=12),
)


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(command=st.sampled_from([*COMMANDS]), args=st.lists(ARGUMENT, max_size=6))
def test_no_arguments_bring_a_traceback(shared_redis: RedisServer, command: str, args: list[str]) -> None:
    """Whatever is typed, what comes is an answer, a usage error or one line of refusal."""
    if command == "status" and "--watch" in args:
        args.remove("--watch")
    quick = (
        ["--timeout", "0.1"] if command in ("next", "doctor", "step-down", "pause", "resume", "run", "backfill") else []
    )
    result = invoke(app_for(shared_redis.url), command, *quick, *args[:5])
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert "Traceback" not in result.output
    assert "internal error" not in result.output, result.output
