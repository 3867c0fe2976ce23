"""Contract of every lease store."""

import time
from dataclasses import replace

import pytest

from ha_beat.errors import ForeignApp, NewerSchema, StoreRefused, StoreUnavailable
from ha_beat.reasons import CampaignRefusal, TermEnd
from ha_beat.store.lease import Acquired, Expected, LeaseRecord, Lost, Refused, Renewed
from ha_beat.store.lease_store import RedisLeaseStore
from tests.integration.store.conftest import KEYS, LeaseBench, RedisBench
from tests.support.leases import acquire, attempt, current
from tests.support.servers import RedisServer

MOVED = Refused(CampaignRefusal.MOVED)
SUPERSEDED, STATE_LOSS = Lost(TermEnd.SUPERSEDED), Lost(TermEnd.STATE_LOSS)


def take(bench: LeaseBench | RedisBench, name: str = "one", **more: str) -> Acquired:
    """Take the lease over from its holder, if it has one."""
    return acquire(bench.store, attempt(name, **more))


def record_of(bench: LeaseBench | RedisBench) -> LeaseRecord:
    return bench.store.observe().record


def test_at_first_there_is_no_lease_and_it_can_be_taken(lease: LeaseBench):
    assert record_of(lease) is None
    taken = take(lease)
    record = record_of(lease)
    assert (record.holder, record.nonce, record.epoch) == ("one", "nonce of one", taken.term.epoch)
    assert (record.ttl_ms, record.seq, record.held, record.http) == (10_000, 1, True, "http://host:1")
    assert (taken.previous_holder, taken.term.trusted_until) == ("", 109.0)


def test_observation_follows_each_change_of_the_record(lease: LeaseBench):
    """Redis sends an unchanged record only once, so a change back to an earlier record must be seen too."""
    assert record_of(lease) is None
    taken = take(lease)
    first = record_of(lease)
    assert record_of(lease) == first
    lease.store.renew(taken.term, 2, "")
    assert record_of(lease).seq == first.seq + 1
    lease.lose_state()
    assert record_of(lease) is record_of(lease) is None


def test_campaign_on_a_lease_that_has_changed_is_refused(lease: LeaseBench):
    """After it was seen missing, held or stale, it was acquired, renewed or deleted."""
    assert lease.store.acquire(attempt("two"), Expected(5, 1), 0) == MOVED
    term = take(lease, "one").term
    assert lease.store.acquire(attempt("two"), None, 0) == MOVED
    seen = current(lease.store)
    assert isinstance(lease.store.renew(term, 2, ""), Renewed)
    assert lease.store.acquire(attempt("two"), seen, 0) == MOVED
    seen = current(lease.store)
    take(lease, "two")
    assert lease.store.acquire(attempt("three"), seen, 0) == MOVED
    assert record_of(lease).holder == "two"


def test_each_acquisition_has_a_higher_epoch_than_all_before(lease: LeaseBench):
    first, second = take(lease, "one").term, take(lease, "two").term
    far = second.epoch + 10**9
    third = lease.store.acquire(attempt("three"), current(lease.store), far)
    assert first.epoch < second.epoch
    assert third.term.epoch == far + 1


def test_the_epoch_does_not_fall_back_when_the_state_is_lost(lease: LeaseBench):
    """No replica remembers the old epoch, but the server's time is the floor."""
    take(lease)
    before = take(lease, "three").term
    lease.lose_state()
    time.sleep(0.005)
    after = take(lease, "two").term
    assert after.epoch >= before.epoch
    assert after.gen != before.gen


def test_journal_of_changes_of_leader_is_bounded(shared_redis: RedisServer):
    """Also if no leader renews the lease or records a verdict."""
    client, keys = shared_redis.client(), KEYS
    store = RedisLeaseStore(lambda: client, keys, journal_size=100)
    for number in range(500):
        acquire(store, attempt(f"replica {number % 5}", f"nonce {number}"))
    assert 100 <= client.xlen(keys.journal) <= 300


@pytest.mark.parametrize("offset", [20.5, -3600.0, 0.0])
def test_acquisition_replaces_the_last_leaders_offset(lease: LeaseBench, offset: float):
    """The dispatch script judges the first batch of a term by it."""
    acquire(lease.store, replace(attempt("one"), offset=9.0))
    acquire(lease.store, replace(attempt("two"), offset=offset))
    assert record_of(lease).offset == offset


def test_renewal_changes_only_number_and_presence(lease: LeaseBench):
    """An attempt that arrives after a later one is late: trust counts from the send of the one that set the number."""
    term = take(lease).term
    before = record_of(lease)
    assert isinstance(lease.store.renew(term, 7, ""), Renewed)
    assert replace(record_of(lease), renewed_ms=0) == replace(before, seq=7, renewed_ms=0)
    for seq in (7, 6):
        assert lease.store.renew(term, seq, "") == "late"
        assert record_of(lease).seq == 7


def test_after_another_acquisition_the_old_term_is_lost(lease: LeaseBench):
    """The nonce is compared too."""
    old, new = take(lease, "one").term, take(lease, "two").term
    assert lease.store.renew(old, 9, "") == SUPERSEDED
    assert lease.store.renew(replace(new, nonce="forged"), 9, "") == SUPERSEDED
    assert lease.store.release(old, TermEnd.SHUTDOWN) is False
    assert record_of(lease).held


def test_a_released_lease_refuses_its_last_holder(lease: LeaseBench):
    """A renewal that arrives after the release must not undo it."""
    term = take(lease).term
    assert lease.store.release(term, TermEnd.SHUTDOWN) is True
    assert lease.store.renew(term, 2, "") == SUPERSEDED
    assert lease.store.release(term, TermEnd.SHUTDOWN) is False
    assert (record_of(lease).held, record_of(lease).reason) == (False, TermEnd.SHUTDOWN)
    assert lease.on_wake() == 1


def test_preferred_replica_stays_in_the_record_until_the_next_term(lease: LeaseBench):
    lease.store.release(take(lease).term, TermEnd.STEP_DOWN, "ann", "two")
    record = record_of(lease)
    assert (record.preferred, record.reason, record.detail) == ("two", TermEnd.STEP_DOWN, "ann")
    take(lease, "two")
    assert record_of(lease).preferred == ""


def test_without_record_or_with_other_state_behind_it_the_term_is_lost(lease: LeaseBench):
    term = take(lease).term
    lease.lose_state()
    assert lease.store.renew(term, 2, "") == STATE_LOSS
    take(lease, "two")
    assert lease.store.renew(term, 3, "") == SUPERSEDED


def test_work_under_another_incarnation_of_the_state_or_the_server_is_lost(lease: LeaseBench):
    """Epoch and nonce may have been restored from a backup."""
    term = take(lease).term
    assert lease.store.renew(replace(term, gen="another"), 2, "") == STATE_LOSS
    if lease.knows_its_server:
        assert lease.store.renew(replace(term, run_id="another"), 2, "") == Lost(TermEnd.SERVER_CHANGED)
    assert isinstance(lease.store.renew(term, 2, ""), Renewed)


def test_presence_is_registered_only_once_it_is_counted(lease: LeaseBench):
    """A proxy or server without pub/sub must not make its holder look dead."""
    taken = take(lease, presence="channel")
    assert (taken.presence, lease.store.observe().subscribers) == ("", -1)
    assert lease.store.renew(taken.term, 2, "channel") != "late"
    assert lease.store.observe().subscribers == -1
    lease.subscribe("channel")
    assert lease.store.renew(taken.term, 3, "channel").presence == "channel"
    assert lease.store.observe().subscribers == 1


def test_absent_holder_loses_the_lease_and_a_present_one_keeps_it(lease: LeaseBench):
    lease.subscribe("channel")
    assert take(lease, presence="channel").presence == "channel"
    absent = current(lease.store, absent=True)
    assert isinstance(lease.store.acquire(attempt("two"), absent, 0), Refused)
    assert lease.store.observe().run_id == ""
    lease.unsubscribe("channel")
    view = lease.store.observe()
    assert (view.subscribers, bool(view.run_id)) == (0, lease.knows_its_server)
    assert isinstance(lease.store.acquire(attempt("two"), absent, 0), Acquired)


def test_renewal_without_presence_removes_it(lease: LeaseBench):
    """After the loss of its presence connection, a leader renews without it."""
    lease.subscribe("channel")
    lease.store.renew(take(lease, presence="channel").term, 2, "")
    assert lease.store.observe().subscribers == -1


def test_another_app_is_refused_even_if_the_lease_is_free(lease: LeaseBench):
    """Two apps with one cluster name would enqueue each other's schedule."""
    lease.store.release(take(lease).term, TermEnd.SHUTDOWN)
    with pytest.raises(ForeignApp):
        take(lease, "two", fingerprint="other app")


def test_acquisition_returns_the_previous_state(lease: LeaseBench):
    """The new leader detects a loss of state by it."""
    first, second = take(lease, "one"), take(lease, "two")
    assert first.previous_gens == ("", "")
    assert second.previous_gens == (first.term.gen, first.term.gen)
    assert second.term.gen == first.term.gen
    assert (second.previous_holder, second.previous_run_id) == ("one", first.term.run_id)


# --- Records of a server


def test_lease_and_ledger_never_expire(bench: RedisBench):
    """Redis expires keys by its wall clock, which steps, and evicts keys with a TTL first."""
    bench.store.renew(take(bench).term, 2, "")
    assert [bench.client.ttl(key) for key in (KEYS.lease, KEYS.ledger)] == [-1, -1]


@pytest.mark.parametrize("lost", ["lease", "ledger"])
def test_only_a_lost_ledger_starts_a_new_incarnation(bench: RedisBench, lost: str):
    """The positions are in the ledger. A lost lease has no state that matters."""
    before = take(bench).term
    expected = None if lost == "lease" else current(bench.store)
    bench.client.delete(getattr(KEYS, lost))
    if lost == "ledger":
        assert isinstance(bench.store.renew(before, 2, ""), Lost)
    after = bench.store.acquire(attempt("two"), expected, 0).term
    assert (after.gen == before.gen) is (lost == "lease")
    assert after.epoch > before.epoch


def test_newer_software_is_not_led_over(bench: RedisBench):
    """A replica of an older version would write records that the newer replicas no longer expect."""
    bench.client.hset(KEYS.ledger, "m:schema", "99")
    with pytest.raises(NewerSchema, match="schema 99"):
        take(bench)
    assert record_of(bench) is None


def test_unknown_fields_stay_in_the_lease_record(bench: RedisBench):
    """Two versions may lead in turn during a rolling deploy."""
    term = take(bench).term
    bench.client.hset(KEYS.lease, "shoe_size", "43")
    assert record_of(bench) is not None
    assert isinstance(bench.store.renew(term, 2, ""), Renewed)
    assert bench.client.hget(KEYS.lease, "shoe_size") == b"43"


def test_scripts_flushed_from_the_server_are_sent_again(bench: RedisBench):
    """After SCRIPT FLUSH, or a failover to a server that never saw them."""
    bench.store.observe()
    bench.client.script_flush()
    assert isinstance(bench.store.acquire(attempt(), None, 0), Acquired)


def test_a_full_redis_does_not_cost_the_lease(server_bench: RedisBench):
    """Lease scripts may exceed the memory limit. Otherwise the leader would lose the lease although Redis answers."""
    client, store = server_bench.client, server_bench.store
    term = take(server_bench).term
    client.config_set("maxmemory", "1")
    try:
        if int(client.info("server")["redis_version"].split(".")[0]) < 7:
            with pytest.raises(StoreRefused, match="OOM"):
                store.renew(term, 2, "")
            return
        assert isinstance(store.renew(term, 2, ""), Renewed)
        assert store.release(term, "shutdown")
        take(server_bench, "two")
    finally:
        client.config_set("maxmemory", "0")


def test_lease_key_of_another_type_is_an_error(bench: RedisBench):
    bench.client.set(KEYS.lease, "mine")
    for act in (bench.store.observe, lambda: bench.store.acquire(attempt(), None, 0)):
        with pytest.raises(StoreRefused, match=r"WRONGTYPE|wrong kind"):
            act()


@pytest.mark.parametrize("known_to", ["lease", "ledger", "seen"])
def test_the_epoch_is_above_each_that_is_known(server_bench: RedisBench, known_to: str):
    """After the clock of Redis was set back, the lease, the ledger or the candidate may know a higher epoch."""
    ahead = take(server_bench).term.epoch + 10**9
    if known_to != "seen":
        field = {"lease": (KEYS.lease, "epoch"), "ledger": (KEYS.ledger, "m:epoch")}[known_to]
        server_bench.client.hset(*field, ahead)
    seen = ahead if known_to == "seen" else 0
    assert server_bench.store.acquire(attempt("two"), current(server_bench.store), seen).term.epoch == ahead + 1


def test_a_ledger_that_is_not_the_leases_is_a_new_incarnation(bench: RedisBench):
    """One of the two was restored from a backup, so neither is evidence of the other's state."""
    before = take(bench).term
    bench.client.hset(KEYS.ledger, "m:gen", "restored")
    after = take(bench, "two")
    assert after.term.gen not in (before.gen, "restored")
    assert after.previous_gens == (before.gen, "restored")


def test_a_renewal_counts_only_when_enough_replicas_have_it(shared_redis: RedisServer):
    """Without replicas, a failover would lose the renewal."""
    client = shared_redis.client()
    store = RedisLeaseStore(lambda: client, KEYS, wait_replicas=1, wait_timeout=0.05)
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        store.renew(acquire(store).term, 2, "")


NUMBERS = ("epoch", "seq", "ttl_ms", "pid", "since_ms", "renewed_ms", "offset_ms")


@pytest.mark.parametrize("garbage", ["", "garbage", "inf", "nan", "1e300", "-5", "9" * 30, b"\xff\xfe", None])
def test_corrupt_lease_record_can_be_taken_over(server_bench: RedisBench, garbage: str | bytes | None):
    """An invalid number counts as 0. Otherwise no replica would lead until an operator repairs the record."""
    client, store = server_bench.client, server_bench.store
    for fields in (*([name] for name in NUMBERS), NUMBERS):
        client.flushall()
        first = take(server_bench).term
        for field in fields:
            if garbage is None:
                client.hdel(KEYS.lease, field)
            else:
                client.hset(KEYS.lease, field, garbage)
        expected = current(store)
        assert store.acquire(attempt("late"), replace(expected, seq=expected.seq + 1), 0) == MOVED
        taken = store.acquire(attempt("two"), expected, 0).term
        assert taken.epoch > first.epoch
        assert isinstance(store.renew(taken, 2, ""), Renewed)
        after = record_of(server_bench)
        assert (after.holder, after.epoch, after.seq, after.ttl_ms) == ("two", taken.epoch, 2, 10_000)


@pytest.mark.parametrize("field", ["m:epoch", "m:schema", "m:run_id", "m:unfinished", "m:journal"])
def test_corrupt_ledger_fields_do_not_forbid_leading(server_bench: RedisBench, field: str):
    """The numbers in the ledger are only lower limits."""
    take(server_bench)
    for garbage in ("garbage", "", "inf", "nan"):
        server_bench.client.hset(KEYS.ledger, field, garbage)
        assert isinstance(server_bench.store.renew(take(server_bench, "two").term, 2, ""), Renewed)


def test_requests_key_of_another_type_does_not_stop_renewals(server_bench: RedisBench):
    """Otherwise no renewal would get an answer."""
    term = take(server_bench).term
    server_bench.client.set(KEYS.requests, "garbage")
    assert server_bench.store.renew(term, 2, "").requests == 0
