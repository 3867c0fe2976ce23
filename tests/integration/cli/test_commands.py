"""`celery -A proj ha-beat` against real beats and a real Redis."""

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
from ha_beat.reasons import BackfillOutcome, ReplyCode
from tests.faults.cluster import BeatCluster, base_environment
from tests.support.servers import LOCALHOST, RedisServer, free_port, need, wait_for

#: A lone surrogate comes from a file with a broken escape.
HALF = "half \ud83d"
SPEC = {"fast": {"every": 0.5}, "nightly-report": {"every": 86400}, HALF: {"every": 86400}}

REQUESTS = ["next", "doctor", "step-down", "pause", "resume", "run", "backfill"]
COMMANDS = ["status", "check", "history", "settings", *REQUESTS]
ARGUMENTS = {"run": ["fast"], "backfill": ["fast", "--from", "2026-01-01", "--to", "2026-01-02"]}


def invoke(app: Celery, *args: str) -> Result:
    """Run `ha-beat ARGS` with the context object that Celery passes."""
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
    options = {"settings": {"lease_ttl": 3, "poll_interval": 0.05}, "config": {"beat_scheduler": "ha_beat"}}
    with BeatCluster(server.url, spec=SPEC, replicas=3, **options) as beats:
        beats.wait_until_up()
        wait_for(lambda: "fast" in beats.ledger(), what="the schedule in the ledger")
        wait_for(lambda: beats.admin.hlen(beats.key("members")) == 3, 20, "three members")
        yield beats


@pytest.fixture
def app(server: RedisServer) -> Celery:
    return app_for(server.url)


@pytest.fixture
def resumed(cluster: BeatCluster, app: Celery) -> None:
    """End the pauses that a failed run of a test has left."""
    cluster.wait_for_leader()
    for entry in ([], ["nightly-report"]):
        invoke(app, "resume", *entry)


def data_of(app: Celery, *args: str) -> Any:
    """Run a command with `--json`, and return what it prints."""
    return json.loads(invoke(app, *args, "--json").output)


def test_watch_survives_an_outage_and_ends_on_ctrl_c(monkeypatch):
    waits = []

    def sleep(_, seconds):
        waits.append(seconds)
        if len(waits) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(SystemClock, "sleep", sleep)
    unreachable = app_for(f"redis://127.0.0.1:{free_port()}/0")
    watched = invoke(unreachable, "status", "--watch", "--interval", "7")
    assert watched.exit_code == 0, watched.output
    assert watched.output.count("redis://127.0.0.1") == 2
    assert waits == [7, 7]
    assert invoke(unreachable, "status").exit_code == 2


def test_status_shows_the_leader_and_every_replica(cluster, app):
    cluster.wait_for_leader()
    result, data = invoke(app, "status"), data_of(app, "status")
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in (data["leader"], *(replica.name for replica in cluster)))
    assert (data["leader"], len(data["members"])) == (cluster.lease()["holder"], 3)
    assert invoke(app, "status", "--leader-host").output == f"{data['lease']['host']}\n"


def test_check_exits_with_0_if_a_leader_keeps_up(cluster, app):
    cluster.wait_for_leader()
    wait_for(lambda: len(data_of(app, "status")["members"]) == 3, what="three replicas, all on this host")
    for args, status in (((), 0), (("--here",), 0), (("--replica", "beat-1"), 0), (("--replica", "beat-9"), 1)):
        # A replica that the machine holds up is not ready for a moment.
        wait_for(lambda given=args, wanted=status: invoke(app, "check", *given).exit_code == wanted, what=str(args))


def test_history_filters_by_entry_and_limit(cluster, app):
    wait_for(lambda: any(r.get("entry") == "fast" for r in cluster.journal()), what="a record")
    records = data_of(app, "history", "fast", "--limit", "3")
    assert {record["entry"] for record in records} == {"fast"}
    assert len(records) <= 3
    assert "acquired" in {record.get("event") for record in data_of(app, "history", "--limit", "10000")}
    assert invoke(app, "history", "nightly-repotr").exit_code == 1


def test_next_lists_entries_by_due_time(cluster, app):
    entries = [line["name"] for line in data_of(app, "next")]
    assert entries[0] == "fast"
    assert "nightly-report" in entries
    assert invoke(app, "next", "fast").exit_code == 0


@pytest.mark.parametrize("command", ["status", "next", "doctor", "history"])
def test_name_with_a_lone_surrogate_ends_no_command(cluster, app, command):
    cluster.wait_for_leader()
    results = [invoke(app, command, *args) for args in ([], ["--json"])]
    assert [result.exit_code for result in results] == [0, 0]
    if command in {"next", "history"}:
        assert invoke(app, command, HALF.encode("unicode_escape").decode()).exit_code == 0


def test_settings_show_sources_and_no_password(app):
    secret = app_for("redis://:hunter2@127.0.0.1:1/0", ha_beat_redis_url="redis://:hunter2@127.0.0.1:1/0")
    result = invoke(secret, "settings")
    assert (result.exit_code, "hunter2" in result.output, "ha_beat_lease_ttl" in result.output) == (0, False, True)
    assert data_of(app, "settings")["cluster"]["source"] == "ha_beat_cluster"


def test_doctor_finds_no_fault_in_a_healthy_cluster(cluster, app):
    cluster.wait_for_leader()
    found = {finding["subject"]: finding["level"] for finding in data_of(app, "doctor")}
    for subject in ("dispatch", "persistence", "eviction policy", "invariants", "lease's store"):
        assert found[subject] == "ok"
    # The test's app has another configuration source than the replicas' app.
    assert {subject for subject, level in found.items() if level == "fail"} <= {"app"}


def test_doctor_fails_for_an_app_with_another_lease_store(server, cluster, redis_server):
    cluster.wait_for_leader()
    wait_for(lambda: server.admin.exists(cluster.key("store")), 30, "the mark")
    result = invoke(app_for(server.url, ha_beat_redis_url=redis_server.url), "doctor", "--timeout", "0.5", "--json")
    assert result.exit_code == 1
    (finding,) = [each for each in json.loads(result.output) if each["subject"] == "lease's store"]
    assert finding["level"] == "fail"
    for part in (f":{server.port}/0", f":{redis_server.port}/0", cluster.key("store")):
        assert part in finding["text"]


def test_step_down_hands_over_to_the_named_replica(cluster, app):
    for _ in range(3):
        leader = cluster.wait_for_leader()
        target = next(r for r in cluster if r is not leader)
        done = data_of(app, "step-down", "--to", target.name)
        assert done["code"] == ReplyCode.STEPPING_DOWN, done
        assert done["leader"] == cluster.lease()["holder"]
        assert done["leader"].startswith(f"{target.name}:")
    assert invoke(app, "step-down", "--to", "baet-1").exit_code == 2


@pytest.mark.usefixtures("resumed")
def test_pause_run_and_resume_answer_with_codes(cluster, app):
    paused = data_of(app, "pause", "--reason", "upgrade")
    assert (paused["ok"], paused["code"]) == (True, ReplyCode.PAUSED)
    assert paused["leader"] == cluster.lease()["holder"]
    assert data_of(app, "status")["paused"]["reason"] == "upgrade"
    # A replica that the machine holds up is not ready for a moment.
    wait_for(lambda: invoke(app, "check").exit_code == 0, what="ready replicas")
    again = invoke(app, "pause", "--json")
    assert again.exit_code == 1
    assert json.loads(again.output)["code"] == ReplyCode.ALREADY_PAUSED
    ran = data_of(app, "run", "nightly-report")
    assert (ran["code"], ran["entry"]) == (ReplyCode.SENT, "nightly-report")
    assert data_of(app, "resume")["was"]["reason"] == "upgrade"
    assert data_of(app, "resume")["code"] == ReplyCode.NOT_PAUSED
    assert data_of(app, "run", "nightly-reprot")["nearest"] == ["nightly-report"]


@pytest.mark.usefixtures("resumed")
def test_pause_of_an_entry_is_in_the_status_until_it_is_resumed(app):
    assert data_of(app, "pause", "nightly-reprot")["nearest"] == ["nightly-report"]
    assert data_of(app, "pause", "nightly-report", "--reason", "figures")["code"] == ReplyCode.ENTRY_PAUSED
    status = data_of(app, "status")
    assert status["paused"] is None
    assert status["paused_entries"]["nightly-report"]["reason"] == "figures"
    assert "figures" in invoke(app, "status").output
    assert data_of(app, "resume", "nightly-report")["code"] == ReplyCode.ENTRY_RESUMED
    assert data_of(app, "status")["paused_entries"] == {}


def test_backfill_shows_each_instant(cluster, app):
    args = ["backfill", "nightly-report", "--from", "2026-01-01", "--to", "2026-01-03", "--dry-run"]
    planned = invoke(app, *args, "--json")
    assert planned.exit_code == 1
    outcomes = [each["outcome"] for each in json.loads(planned.output)["instants"]]
    assert outcomes == [BackfillOutcome.NOT_IN_JOURNAL] * 2
    forced = data_of(app, *args, "--force")
    assert (forced["code"], forced["count"]) == (ReplyCode.BACKFILL_PLANNED, 2)
    assert invoke(app, "backfill", "fast", "--from", "2026-01-02", "--to", "2026-01-01").exit_code == 2


def test_celery_command_finds_the_plugin(server, cluster):
    command = [sys.executable, "-m", "celery", "-A", "tests.support.apps.tick_app", "ha-beat", "check"]
    env = base_environment({"BROKER_URL": server.url, "HA_BEAT_CLUSTER": "tick"})

    def passes() -> bool:
        done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=200, check=False)
        if "No such command" in done.stderr:
            pytest.fail("the entry point is missing: install the package again")
        return done.returncode == 0

    wait_for(passes, what="ready replicas")


@pytest.mark.parametrize("command", [command for command in COMMANDS if command != "settings"])
def test_unreachable_redis_is_one_line_and_exit_status_2(command):
    app = app_for(f"redis://:secret@{LOCALHOST}:{free_port()}/0")
    began = time.monotonic()
    result = invoke(app, command, *ARGUMENTS.get(command, []))
    assert (result.exit_code, len(result.output.strip().splitlines())) == (2, 1)
    assert (LOCALHOST in result.output, "secret" in result.output) == (True, False)
    assert time.monotonic() - began < 30


def test_wrong_settings_are_named_and_exit_status_is_2():
    result = invoke(app_for("redis://", ha_beat_lease_tl=3, ha_beat_batch_size="many"), "status")
    assert result.exit_code == 2
    assert all(name in result.output for name in ("ha_beat_lease_ttl", "ha_beat_batch_size"))


def test_without_a_leader_commands_fail_and_requests_are_withdrawn(redis_server):
    app = app_for(redis_server.url)
    for command in (["pause", "--timeout", "0.5"], ["check"], ["doctor", "--timeout", "0.5"]):
        assert invoke(app, *command).exit_code == 1
        assert redis_server.admin.hlen("{ha-beat:tick}:requests") == 0


WORDS = [
    *COMMANDS,
    *("--json", "--help", "--limit", "--from", "--to", "--since", "--timeout", "--dry-run", "--force", "--to"),
    *("--verdict", "skipped", "--replica", "--here", "--reason", "0.1", "-1", "1e309", "nan", "inf", "fast"),
    *("2026-01-01", "9999-12-31T23:59:59+14:00", "0001-01-01T00:00:00-14:00", "2026-13-01", "--", "-h"),
]


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    command=st.sampled_from(COMMANDS),
    args=st.lists(st.one_of(st.sampled_from(WORDS), st.text(max_size=12)), max_size=6),
)
def test_arguments_never_cause_a_traceback(shared_redis, command, args):
    if command == "status" and "--watch" in args:
        args.remove("--watch")
    quick = ["--timeout", "0.1"] if command in REQUESTS else []
    result = invoke(app_for(shared_redis.url), command, *quick, *args[:5])
    assert result.exit_code in (0, 1, 2), result.output
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert not any(text in result.output for text in ("Traceback", "internal error")), result.output
