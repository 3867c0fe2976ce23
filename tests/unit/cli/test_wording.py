"""Wording of the command line: the only tests that look at its sentences."""

from types import SimpleNamespace

import pytest
from click.testing import CliRunner

from ha_beat.cli.celery_command import ha_beat
from ha_beat.cli.command import CommandUnavailable, find_member, leader_text
from ha_beat.monitoring import request_wording
from ha_beat.monitoring.request_wording import instant_text, pause_text, reply_text
from ha_beat.reasons import BackfillOutcome, ReplyCode, TermEnd
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import ClusterView, Member

COMMANDS = ha_beat.list_commands(None)  # type: ignore[arg-type]
HELD_TOO_LONG = LeaseRecord("one", 1, state="held", renewed_ms=900, ttl_ms=10)
RELEASED = LeaseRecord("one", 1, state="released", reason=TermEnd.SHUTDOWN)
PAUSED = {"since_ms": 1000, "by": "ann", "reason": "work"}
MISSPELLED = {"entry": "rrae", "nearest": ["rare"], "entries": 2}
DISABLED = {"entry": "x", "disabled": True}
INCOMPLETE = {"entry": "e", "dry_run": True, "count": 1, "instants": [{}, {}]}
MEMBERS = [Member("beat-1:aaaaaa", host="web"), Member("beat-2:bbbbbb", host="web"), Member("worker:cccccc", host="db")]


@pytest.mark.parametrize("command", COMMANDS)
def test_command_has_help_with_an_example(command):
    result = CliRunner().invoke(ha_beat, [command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.output
    assert f"ha-beat {command}" in result.output


def test_misspelled_command_is_answered_with_the_nearest():
    result = CliRunner().invoke(ha_beat, ["stauts"])
    assert (result.exit_code, "status" in result.output) == (2, True)


def test_usage_error_of_a_command_without_an_app_shows_how_to_name_one():
    result = CliRunner().invoke(ha_beat, ["status"], obj=SimpleNamespace(app=None))
    assert (result.exit_code, "celery -A your_project ha-beat" in result.output) == (2, True)


@pytest.mark.parametrize(
    ("name", "found"),
    [
        ("beat-1:aaaaaa", "beat-1:aaaaaa"),
        ("beat-2", "beat-2:bbbbbb"),
        ("db", "worker:cccccc"),
        ("web", "'web' matches 2 replicas: beat-1:aaaaaa, beat-2:bbbbbb"),
        ("baet-1", "there is no replica 'baet-1'; did you mean beat-1?"),
        ("x", "there is no replica 'x'; the replicas are beat-1:aaaaaa, beat-2:bbbbbb, worker:cccccc"),
    ],
)
def test_replica_is_found_by_id_prefix_or_host(name, found):
    try:
        assert find_member(MEMBERS, name).id == found
    except CommandUnavailable as exc:
        assert exc.message == found


@pytest.mark.parametrize(
    ("lease", "text"),
    [
        (None, "there is no leader: no replica has run with this cluster name and Redis"),
        (LeaseRecord("one", 1, state="held", renewed_ms=1000, ttl_ms=10), "one leads"),
        (HELD_TOO_LONG, "there is no leader: one holds the lease and does not renew it"),
        (RELEASED, "there is no leader: one released the lease (the replica was stopped)"),
    ],
)
def test_leader_text(lease, text):
    assert leader_text(ClusterView(1000, lease, (), "", 0, 0, 0, "")) == text


@pytest.mark.parametrize(
    ("code", "data", "text"),
    [
        (ReplyCode.SENT, {"entry": "e", "task": "t", "task_id": "i"}, "enqueued e as t[i]"),
        (ReplyCode.ALREADY_PAUSED, PAUSED, "the cluster is paused already, since 1970-01-01 00:00:01 UTC by ann: work"),
        (ReplyCode.NO_SUCH_ENTRY, MISSPELLED, "the leader has no entry 'rrae'; did you mean rare?"),
        (ReplyCode.NO_SUCH_ENTRY, {"entry": "x", "nearest": [], "entries": 2}, "the leader has no entry 'x'; it has 2"),
        (ReplyCode.NO_SUCH_ENTRY, DISABLED, "entry x is disabled: enable it first"),
        (ReplyCode.BACKFILL_INCOMPLETE, INCOMPLETE, "would enqueue 1 of 2 instants of e, 1 refused"),
        (ReplyCode.BACKFILLED, {"entry": "e", "count": 1, "instants": [{}]}, "enqueued 1 of 1 instants of e"),
        (ReplyCode.FAILED, {"detail": "KeyError: {x}"}, "the request failed: KeyError: {x}"),
    ],
)
def test_reply_text(code, data, text):
    assert reply_text(code, data).startswith(text)


def test_every_reply_code_and_outcome_is_worded():
    for code in ReplyCode:
        if code not in {ReplyCode.ALREADY_PAUSED, ReplyCode.ENTRY_ALREADY_PAUSED}:  # its data are required
            assert isinstance(reply_text(code, {}), str)
    assert set(request_wording._STATES) == set(BackfillOutcome)


def test_instant_text_has_the_detail():
    assert instant_text({"outcome": "not_sent", "detail": "no queue"}) == ("failed", "not enqueued: no queue")
    assert instant_text({"outcome": "planned", "detail": ""}) == ("would enqueue", "")


def test_pause_text_of_a_malformed_record():
    assert pause_text(Pause.parse("{")) == "by a record that cannot be read"
