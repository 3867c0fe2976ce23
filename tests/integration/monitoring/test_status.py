"""Tests of the journal, the members, the poller and the status on a real Redis."""

import json
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from ha_beat import events
from ha_beat.errors import StoreUnavailable
from ha_beat.monitoring.invariants import InvariantChecker
from ha_beat.monitoring.status import Poller
from ha_beat.reasons import EntryFault, Invariant, RedisRisk
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.membership import MOST_RECORDS, Member, Members, Upcoming
from ha_beat.store.server_facts import ServerSettings
from ha_beat.testing import SettableClock
from tests.support.events import EventLog
from tests.support.servers import RedisServer
from tests.unit.monitoring.scene import Scene

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


def test_journal_is_read_newest_first_by_time_and_by_entry(client):
    for second in range(1200):
        write(client, enqueued(f"entry-{second % 3}", ms=1_000_000 + second * 1000), f"{1_000_000 + second * 1000}-0")
    write(client, "no JSON", f"{3_000_000}-0")
    journal = Journal(lambda: client, KEYS)
    assert [(record.n, record.kind) for record in journal.newest(2)] == [(1201, "unreadable"), (1200, "occurrence")]
    assert [record.n for record in journal.between()] == list(range(1201, 0, -1))
    since, until = (datetime.fromtimestamp(1000 + s, UTC) for s in (10, 20))
    assert [record.n for record in journal.between(since, until)] == list(range(20, 10, -1))
    assert [record.n for page in journal.pages(until=until, mentions="entry-1") for record in page] == [
        20,
        17,
        14,
        11,
        8,
        5,
        2,
    ]
    assert [record.n for record in journal.after("2197000-0")] == [1199, 1200, 1201]


def test_second_message_in_a_real_journal_is_found_once(client):
    found = EventLog()
    checker = InvariantChecker(Members(lambda: client, KEYS), Journal(lambda: client, KEYS), found.append)
    for by, rules in (("a", []), ("b", [Invariant.TWO_VERDICTS])):
        write(client, {**enqueued(), "by": by})
        for _ in range(2):
            assert [violation.rule for violation in checker.check()] == rules
    assert len(found) == 1


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


# --- The poller


def polled(client: redis.Redis, **options: Any) -> tuple[Scene, Poller]:
    scene = Scene(SettableClock(datetime.now(UTC)), polled=False)
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
    for gen, entry, stream_id in (("one", "before", "9000000000000-0"), ("two", "after", "*")):
        client.flushall()
        client.hset(KEYS.ledger, "m:gen", gen)
        write(client, enqueued(entry), stream_id)
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


def test_without_redis_readers_raise_and_the_poller_keeps_its_snapshot():
    scene, poller = polled(unreachable())
    poller.poll()
    assert scene.status.unreachable
    assert scene.document()["redis"]["reachable"] is False
    members = Members(unreachable, KEYS)
    for read in (Journal(unreachable, KEYS).newest, members.view):
        with pytest.raises(StoreUnavailable):
            read()
    members.remove("x")


@pytest.mark.usefixtures("eviction")
@pytest.mark.parametrize("full", [True, False])
def test_risk_of_data_loss_is_emitted_once(client, full):
    scene, poller = polled(client, full=full)
    for _ in range(3):
        poller.poll()
        scene.clock.advance(60)
    assert [event.reason for event in scene.events.of(events.ServerMayForget)] == [
        RedisRisk.EVICTION,
        RedisRisk.NO_APPEND_ONLY_FILE,
    ]
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
    for event, warned in (
        (events.EntryFailed("nightly", EntryFault.SCHEDULE_RAISES), {"entry_failing"}),
        (events.Enqueued("nightly", "t", "id", AT, 0.1), set()),
        (events.InvariantBroken(Invariant.EPOCH_FELL, "lease", "5 after 6"), {"invariant_broken"}),
    ):
        scene.status.memory(event)
        assert scene.warned(other) == warned
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
    status = json.loads(json.dumps(scene.document()))
    assert status["schema"] == 1
    assert set(status) == {
        "schema", "cluster", "now_ms", "replica", "redis", "leader", "lease", "paused", "paused_entries", "members",
        "entries", "backlog", "overdue_s", "taken_up", "upcoming", "recent", "terms", "journal", "warnings",
    }  # fmt: skip
    assert status["recent"][0]["task_id"] == "task-id"
