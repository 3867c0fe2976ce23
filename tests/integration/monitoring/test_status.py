"""Tests of the journal, the members, the poller and the status."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat import events
from ha_beat.errors import StoreUnavailable
from ha_beat.monitoring.status import Poller, Snapshot, document, spans
from ha_beat.monitoring.status.poller import certain_offset
from ha_beat.reasons import EntryFault, Invariant, RedisRisk
from ha_beat.store.journal import Journal, Record, TermRecord, parse
from ha_beat.store.keys import Keys
from ha_beat.store.lease import LeaseRecord
from ha_beat.store.membership import MOST_RECORDS, Member, Members, Upcoming
from ha_beat.store.server_facts import ServerSettings
from ha_beat.testing import SettableClock
from tests.integration.monitoring.support import Scene
from tests.support.servers import RedisServer

KEYS = Keys("shop")
AT = datetime(2026, 5, 1, 12, 0, 0, 250_000, tzinfo=UTC)


@pytest.fixture
def client(shared_redis: RedisServer) -> redis.Redis:
    return shared_redis.client(decode_responses=False)


@pytest.fixture
def eviction(client: redis.Redis) -> Iterator[None]:
    """Let Redis evict any key."""
    client.config_set("maxmemory", "100mb")
    client.config_set("maxmemory-policy", "allkeys-lru")
    yield
    client.config_set("maxmemory", "0")
    client.config_set("maxmemory-policy", "noeviction")


def unreachable() -> redis.Redis:
    return redis.Redis(port=1, socket_timeout=1, retry=Retry(NoBackoff(), 0))


def enqueued(entry: str = "nightly", ms: int = 0) -> dict[str, object]:
    record = {"verdict": "enqueued", "entry": entry, "at": AT.isoformat(timespec="microseconds")}
    return {**record, "ms": ms or round(AT.timestamp() * 1000) + 40, "epoch": 5, "by": "beat-0", "id": "task-id"}


def write(client: redis.Redis, record: object, stream_id: str = "*") -> None:
    raw = record if isinstance(record, str) else json.dumps(record)
    client.xadd(KEYS.journal, {"n": client.hincrby(KEYS.ledger, "m:journal", 1), "d": raw}, id=stream_id)


# --- The journal


def test_enqueued_record_has_its_lateness():
    record = parse("1-0", 3, json.dumps(enqueued()))
    assert (record.n, record.kind, record.entry, record.first, record.count) == (3, "occurrence", "nightly", AT, 1)
    assert record.lateness == pytest.approx(0.04, abs=1e-6)
    assert record.covers(AT)
    assert not record.covers(AT + timedelta(microseconds=1))


def test_label_of_a_record_is_the_name_of_its_entry():
    """Records of database rows have the primary key as the entry."""
    raw = {"verdict": "enqueued", "entry": "2", "at": AT.isoformat(), "id": "x"}
    labels = [parse("1-0", 1, json.dumps(record)).label for record in (raw, {**raw, "name": "clear-sessions"})]
    assert labels == ["2", "clear-sessions"]


def test_range_of_skipped_occurrences_excludes_its_end():
    span = {"from": AT.isoformat(), "until": (AT + timedelta(hours=1)).isoformat(), "count": -1, "why": "coalesced"}
    record = parse("1-0", 1, json.dumps({"verdict": "skipped", "entry": "e", **span, "ms": 1, "epoch": 1, "by": "x"}))
    assert (record.count, record.reason) == (-1, "coalesced")
    assert [record.covers(AT + timedelta(hours=hours)) for hours in (0, 1)] == [True, False]


@pytest.mark.parametrize(
    "raw", ["", "null", "[]", "{", '{"verdict": "enqueued", "entry": "e", "at": 7}', '{"kind": "term"}']
)
def test_malformed_record_is_kept_as_unreadable(raw):
    record = parse("1-0", 1, raw)
    assert (type(record), record.kind, record.ms) == (Record, "unreadable", 1)


def test_record_of_an_unknown_kind_is_kept():
    record = parse("1700-0", 1, '{"kind": "weather", "sun": true}')
    assert (record.kind, record.ms, record.data["sun"]) == ("weather", 1700, True)


def test_journal_is_read_newest_first_by_time_and_by_entry(client):
    for second in range(1200):
        write(client, enqueued(f"entry-{second % 3}", ms=1_000_000 + second * 1000), f"{1_000_000 + second * 1000}-0")
    write(client, "no JSON", f"{3_000_000}-0")
    journal = Journal(lambda: client, KEYS)
    assert [(record.n, record.kind) for record in journal.newest(2)] == [(1201, "unreadable"), (1200, "occurrence")]
    assert [record.n for record in journal.between()] == list(range(1201, 0, -1))
    since, until = (datetime.fromtimestamp(1000 + s, UTC) for s in (10, 20))
    assert [record.n for record in journal.between(since, until)] == list(range(20, 10, -1))
    assert [record.n for record in journal.of_entry("entry-1", 2)] == [1199, 1196]
    assert [record.n for record in journal.after("2197000-0")] == [1199, 1200, 1201]
    assert journal.oldest_ms() == 1_000_000


# --- Members


def test_member_record_round_trip(client):
    upcoming = (Upcoming("nightly", "mail", 99),)
    shown = {"not_ready": {"stalled": "16.0 s"}, "upcoming": upcoming, "failing": {"e": "why"}}
    member = Member("beat-0:abc123", "standby", "h", 1, "1.2", 5, http="http://h:1", clock_offset_ms=-7, **shown)
    members = Members(lambda: client, KEYS)
    view = members.view(member)
    (found,) = view.members
    assert view.lease is None
    assert found.seen_ms == view.server_ms
    assert found == Member(**{**{name: getattr(member, name) for name in Member.__slots__}, "seen_ms": found.seen_ms})
    members.remove(member.id)
    assert members.view().members == ()


def test_only_the_holder_of_the_lease_is_shown_as_leader(client):
    """The record of a killed or paused leader is kept for a while."""
    members = Members(lambda: client, KEYS)
    for name in ("dead", "new"):
        members.announce(Member(name, "leader"))
    now_ms = members.view().server_ms
    lease = {"holder": "new", "epoch": 2, "seq": 1, "state": "held", "renewed_ms": now_ms, "ttl_ms": 10_000}
    client.hset(KEYS.lease, mapping=lease)
    assert {member.id: member.role for member in members.view().members} == {"dead": "standby", "new": "leader"}
    client.hset(KEYS.lease, "renewed_ms", now_ms - 11_000)
    assert members.view().leader is None
    assert {member.role for member in members.view().members} == {"standby"}
    client.hset(KEYS.lease, mapping={"state": "released", "renewed_ms": now_ms})
    assert {member.role for member in members.view().members} == {"standby"}


def test_view_includes_messages_dropped_by_the_guard(client):
    """Workers count them in Redis. Reading them needs no second round trip and no further right."""
    members = Members(lambda: client, KEYS)
    assert members.view().dropped == 0
    client.incrby(KEYS.dropped, 7)
    assert members.view().dropped == 7
    client.delete(KEYS.dropped)
    client.hset(KEYS.dropped, "another", "type")
    assert members.view().dropped == 0


@pytest.mark.parametrize("full", [True, False])
def test_silent_members_are_hidden_and_removed_by_the_leader(client, full):
    """Also by a leader without HTTP, which does not read the records."""
    members = Members(lambda: client, KEYS)
    now = members.announce(Member("alive"))
    client.hset(KEYS.members, "silent", json.dumps({"role": "standby", "seen_ms": now - 7_000}))
    client.hset(KEYS.members, "long gone", json.dumps({"role": "standby", "seen_ms": now - 70_000}))
    client.hset(KEYS.members, "garbage", "no JSON")
    assert [member.id for member in members.view().members] == ["alive"]
    assert client.hlen(KEYS.members) == 4
    scene, poller = polled(client, full=full)
    poller.poll()
    assert client.hlen(KEYS.members) == 5
    scene.lead()
    poller.poll()
    assert set(client.hkeys(KEYS.members)) == {b"silent", b"alive", scene.status.replica.id.encode()}


def test_records_of_killed_replicas_are_bounded_without_a_leader(client):
    """Replicas that crash at each start, and a server whose clock stepped back."""
    members = Members(lambda: client, KEYS)
    for number in range(4 * MOST_RECORDS):
        seen_ms = members.announce(Member(f"killed {number}")) + (-1 if number % 2 else 1) * 600_000
        client.hset(KEYS.members, f"killed {number}", json.dumps({"role": "standby", "seen_ms": seen_ms}))
    assert client.hlen(KEYS.members) <= MOST_RECORDS + 1
    assert members.view().members == ()


def test_members_can_be_read_from_a_full_redis(client):
    """Reading needs no memory, and must work while writes are refused."""
    client.config_set("maxmemory", "1")
    try:
        assert Members(lambda: client, KEYS).view(Member("a")).server_ms > 0
    finally:
        client.config_set("maxmemory", "0")


# --- Terms


def change(event: str, epoch: int, ms: int, **more: object) -> TermRecord:
    raw = {"kind": "term", "event": event, "epoch": epoch, "by": f"beat-{epoch}", "ms": ms, **more}
    return parse(f"{ms}-0", 1, json.dumps(raw))


def test_gap_between_terms_starts_at_the_release_or_the_last_sign():
    first, second = spans([change("acquired", 1, 100), change("released", 1, 500), change("acquired", 2, 540)], None)
    assert (first.ended_ms, first.released, second.gap_ms, second.ended_ms) == (500, True, 40, None)
    lost = [change("acquired", 1, 100), change("acquired", 2, 900, previous_epoch=1, left_ms=300)]
    assert [spans(lost, None, seen)[1].gap_ms for seen in ({}, {1: 850}, {1: 950})] == [600, 50, 0]


def test_term_older_than_the_journal_is_shown():
    (only,) = spans([], LeaseRecord("beat-9", 9, state="held", since_ms=77))
    assert (only.epoch, only.began_ms, only.ended_ms) == (9, 77, None)


# --- The poller


def polled(client: redis.Redis, **options: Any) -> tuple[Scene, Poller]:
    scene = Scene(SettableClock(datetime.now(UTC)))
    options = {"full": True, "compare_clocks": lambda _: None, "emit": scene.events.append, **options}
    return scene, Poller(scene.status, lambda: client, KEYS, scene.clock, **options)


def test_poller_follows_the_journal(client):
    scene, poller = polled(client)
    write(client, enqueued("before"))
    poller.poll()
    write(client, {"kind": "term", "event": "acquired", "epoch": 5, "by": "beat-0", "ms": 7, "reason": "expired"})
    write(client, enqueued("after"))
    poller.poll()
    poller.poll()
    assert [record.entry for record in scene.status.snapshot.recent] == ["before", "after"]
    assert [span.epoch for span in scene.status.snapshot.terms] == [5]


def test_poller_follows_a_journal_that_started_again(client):
    """After FLUSHALL on a server whose clock is behind, new records have lower ids."""
    scene, poller = polled(client)
    client.hset(KEYS.ledger, "m:gen", "one")
    write(client, enqueued("before"), "9000000000000-0")
    poller.poll()
    client.flushall()
    client.hset(KEYS.ledger, "m:gen", "two")
    write(client, enqueued("after"))
    poller.poll()
    assert [record.entry for record in scene.status.snapshot.recent] == ["before", "after"]


def test_poller_skips_to_the_end_of_a_long_burst(client):
    scene, poller = polled(client)
    write(client, enqueued("first"))
    poller.poll()
    pipeline = client.pipeline()
    for number in range(3000):
        pipeline.xadd(KEYS.journal, {"n": number, "d": json.dumps(enqueued(f"entry-{number}"))})
    pipeline.execute()
    poller.poll()
    assert scene.status.snapshot.recent[-1].entry == "entry-2999"


def test_without_redis_the_last_snapshot_is_kept_and_marked():
    scene, poller = polled(unreachable())
    poller.poll()
    assert scene.status.unreachable
    assert document(scene.status)["redis"]["reachable"] is False


def test_journal_and_members_raise_without_redis_except_at_the_end():
    members = Members(unreachable, KEYS)
    for read in (Journal(unreachable, KEYS).newest, members.view):
        with pytest.raises(StoreUnavailable):
            read()
    members.remove("x")


@pytest.mark.usefixtures("eviction")
@pytest.mark.parametrize("full", [True, False])
def test_risk_of_data_loss_is_emitted_once(client, full):
    emitted = []
    scene, poller = polled(client, full=full, emit=emitted.append)
    for _ in range(3):
        poller.poll()
        scene.clock.advance(60)
    risks = [event.reason for event in emitted if isinstance(event, events.ServerMayForget)]
    assert risks == [RedisRisk.EVICTION, RedisRisk.NO_APPEND_ONLY_FILE]
    assert "eviction_policy" in scene.warned() or not full


def test_server_that_keeps_its_data_has_no_risk(client):
    assert Members(lambda: client, KEYS).server_settings() == ServerSettings("", append_only_file=False)
    assert ServerSettings("noeviction", append_only_file=True).risks() == []
    assert ServerSettings("", append_only_file=None).risks() == []


# --- Warnings


@pytest.mark.parametrize("full", [True, False])
def test_leader_compares_its_clock_with_the_others(client, full):
    offsets = []
    scene, poller = polled(client, full=full, compare_clocks=offsets.append)
    Members(lambda: client, KEYS).announce(Member("other", clock_offset_ms=-2500))
    poller.poll()
    scene.lead()
    poller.poll()
    assert offsets == [[-2.5]]


def test_record_never_has_an_offset_from_before_contact(client):
    scene, poller = polled(client, full=False)
    scene.clock.step_wall(-30)
    poller.poll()
    first = Members(lambda: client, KEYS).view().members
    assert [round(each.clock_offset_ms, -4) for each in first] == [-30_000]
    # While Redis was unreachable, its clock stepped.
    scene.status.snapshot = replace(scene.status.snapshot, unreachable="timed out")
    scene.clock.step_wall(90)
    poller.poll()
    again = Members(lambda: client, KEYS).view().members
    assert [round(each.clock_offset_ms, -4) for each in again] == [60_000]


@pytest.mark.parametrize(
    ("difference", "trip", "offset"),
    [(3.0, 0.0, 3.0), (-3.0, 0.0, -3.0), (5.0, 5.0, 0.0), (5.0, 10.0, 0.0), (8.0, 5.0, 3.0), (-3.0, 5.0, -3.0)],
)
def test_slow_trip_is_no_clock_offset(difference, trip, offset):
    assert certain_offset(difference, trip) == offset


@pytest.mark.parametrize(
    ("member", "code"),
    [
        ({"schedule": "bbb"}, "schedule_drift"),
        ({"version": "1.2.2"}, "version_mix"),
        ({"clock_offset_ms": -2500}, "clock_offset"),
        ({"not_ready": {"stalled": ""}}, "not_ready"),
        ({"overdue_ms": 31_000}, "overdue"),
    ],
)
def test_condition_of_another_replica_has_its_warning(client, member, code):
    scene, poller = polled(client)
    poller.poll()
    scene.lead()
    scene.status.schedule = "aaa"
    assert scene.warned(Member("other", **{"version": "1.2.3", "schedule": "aaa", **member})) == {code}


def test_warning_of_each_condition_ends_with_it(client):
    scene, poller = polled(client)
    assert "redis_unreachable" in scene.warned()
    poller.poll()
    assert scene.warned() == {"no_leader", "no_standby"}
    scene.lead()
    other = Member("other", version="1.2.3")
    assert scene.warned(other) == set()
    scene.status.memory(events.EntryFailed("nightly", EntryFault.SCHEDULE_RAISES))
    assert scene.warned(other) == {"entry_failing"}
    scene.status.memory(events.Enqueued("nightly", "t", "id", AT, 0.1))
    assert scene.warned(other) == set()
    scene.status.memory(events.InvariantBroken(Invariant.EPOCH_FELL, "lease", "5 after 6"))
    assert scene.warned(other) == {"invariant_broken"}
    scene.clock.advance(3601)
    scene.lead()
    assert scene.warned(other) == set()


def test_late_confirmation_ends_the_warning_of_an_uncertain_occurrence(client):
    scene, poller = polled(client)
    write(client, {**enqueued(), "verdict": "uncertain"})
    poller.poll()
    assert "uncertain" in scene.warned()
    write(client, enqueued())
    poller.poll()
    assert "uncertain" not in scene.warned()


def test_status_is_json_with_a_schema_number(client):
    scene, poller = polled(client)
    write(client, enqueued())
    poller.poll()
    status = json.loads(json.dumps(document(scene.status)))
    assert status["schema"] == 1
    assert set(status) == {
        "schema", "cluster", "now_ms", "replica", "redis", "leader", "lease", "paused", "paused_entries", "members",
        "entries", "backlog", "overdue_s", "taken_up", "upcoming", "recent", "terms", "journal", "warnings",
    }  # fmt: skip
    assert status["recent"][0]["task_id"] == "task-id"


def test_status_before_the_first_poll():
    scene = Scene()
    assert scene.status.snapshot == Snapshot()
    assert document(scene.status)["members"][0]["id"] == scene.replica.id
