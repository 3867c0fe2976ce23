"""What every lease store promises."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest

from ha_beat.errors import ForeignApp, NewerSchema, StoreRefused, StoreUnavailable
from ha_beat.reasons import CampaignRefusal, TermEnd
from ha_beat.store.lease import Acquired, Expected, Lost, RedisLeaseStore, Refused, Renewed
from tests.integration.store.conftest import KEYS, LeaseBench, RedisBench, attempt
from tests.support.servers import RedisServer


def standing(lease: LeaseBench) -> Expected:
    record = lease.store.observe().record
    assert record is not None
    return Expected(record.epoch, record.seq)


def test_at_first_there_is_no_lease_and_it_can_be_taken(lease: LeaseBench):
    assert lease.store.observe().record is None
    taken = lease.take()
    record = lease.store.observe().record
    assert record is not None
    assert (record.holder, record.nonce, record.epoch) == ("one", "nonce of one", taken.term.epoch)
    assert (record.ttl_ms, record.seq, record.held, record.http) == (10_000, 1, True, "http://host:1")
    assert taken.previous_holder == ""
    assert taken.term.trusted_until == 109.0


def test_second_campaign_on_the_same_state_is_refused(lease: LeaseBench):
    """Both with no lease, and with one that was seen stale."""
    lease.take("one")
    lease.expect_refusal("two", None)
    seen = standing(lease)
    lease.take("two", seen)
    lease.expect_refusal("three", seen)
    record = lease.store.observe().record
    assert record is not None
    assert record.holder == "two"


def test_a_renewal_in_between_saves_the_lease(lease: LeaseBench):
    """The number that the challenger expects is gone."""
    term = lease.take().term
    seen = standing(lease)
    assert isinstance(lease.store.renew(term, 2, ""), Renewed)
    lease.expect_refusal("two", seen)


def test_campaign_on_a_deleted_lease_is_refused(lease: LeaseBench):
    """It was deleted since: that is another state than the one that the decision was made on."""
    lease.expect_refusal("two", Expected(5, 1))


def test_each_acquisition_has_a_higher_epoch_than_all_before(lease: LeaseBench):
    """Above the record's, above what the candidate has seen, and above the server's clock."""
    first = lease.take("one").term
    second = lease.take("two", standing(lease)).term
    far = second.epoch + 10**9
    third = lease.store.acquire(attempt("three"), standing(lease), far)
    assert isinstance(third, Acquired)
    assert first.epoch < second.epoch
    assert third.term.epoch == far + 1


def test_the_epoch_does_not_fall_back_when_the_state_is_lost(lease: LeaseBench):
    """No replica remembers the old epoch, but the server's time is the floor."""
    lease.take()
    before = lease.take("three", standing(lease)).term
    lease.lose_state()
    time.sleep(0.005)
    after = lease.take("two").term
    assert after.epoch >= before.epoch
    assert after.gen != before.gen


def test_a_renewal_moves_the_number_and_nothing_else_but_presence(lease: LeaseBench):
    term = lease.take().term
    before = lease.store.observe().record
    answer = lease.store.renew(term, 7, "")
    after = lease.store.observe().record
    assert isinstance(answer, Renewed)
    assert before is not None
    assert after is not None
    assert replace(after, renewed_ms=0) == replace(before, seq=7, renewed_ms=0)


@pytest.mark.parametrize("seq", [7, 6])
def test_an_attempt_that_arrives_after_a_later_one_is_late(lease: LeaseBench, seq: int):
    """Trust counts from the send of the attempt that moved the lease."""
    term = lease.take().term
    lease.store.renew(term, 7, "")
    assert lease.store.renew(term, seq, "") == "late"
    record = lease.store.observe().record
    assert record is not None
    assert record.seq == 7


def test_after_another_acquisition_the_old_term_is_lost(lease: LeaseBench):
    """Even with the epoch right and only the nonce wrong."""
    old = lease.take("one").term
    new = lease.take("two", standing(lease)).term
    assert isinstance(lease.store.renew(old, 9, ""), Lost)
    assert isinstance(lease.store.renew(replace(new, nonce="forged"), 9, ""), Lost)
    assert lease.store.release(old, TermEnd.SHUTDOWN) is False
    record = lease.store.observe().record
    assert record is not None
    assert record.held


def test_a_released_lease_refuses_its_last_holder(lease: LeaseBench):
    """A renewal that was under way when the lease was released must not bring it back."""
    term = lease.take().term
    assert lease.store.release(term, TermEnd.SHUTDOWN) is True
    assert isinstance(lease.store.renew(term, 2, ""), Lost)
    assert lease.store.release(term, TermEnd.SHUTDOWN) is False
    record = lease.store.observe().record
    assert record is not None
    assert (record.held, record.reason) == (False, TermEnd.SHUTDOWN)
    assert lease.on_wake() == 1


def test_preferred_replica_stays_in_the_record_until_the_next_term(lease: LeaseBench):
    """A step-down in favour of one replica."""
    term = lease.take().term
    lease.store.release(term, TermEnd.STEP_DOWN, "ann", "two")
    record = lease.store.observe().record
    assert record is not None
    assert (record.preferred, record.reason, record.detail) == ("two", TermEnd.STEP_DOWN, "ann")
    lease.take("two", standing(lease))
    record = lease.store.observe().record
    assert record is not None
    assert record.preferred == ""


def test_without_record_or_with_other_state_behind_it_the_term_is_lost(lease: LeaseBench):
    term = lease.take().term
    lease.lose_state()
    assert isinstance(lease.store.renew(term, 2, ""), Lost)
    lease.take("two")
    assert isinstance(lease.store.renew(term, 3, ""), Lost)


def test_work_under_another_incarnation_of_the_state_or_the_server_is_lost(lease: LeaseBench):
    """The epoch and the nonce alone could be restored from a backup."""
    term = lease.take().term
    assert isinstance(lease.store.renew(replace(term, gen="another"), 2, ""), Lost)
    if lease.knows_its_server:
        assert isinstance(lease.store.renew(replace(term, run_id="another"), 2, ""), Lost)
    assert isinstance(lease.store.renew(term, 2, ""), Renewed)


def test_presence_is_registered_only_once_it_is_counted(lease: LeaseBench):
    """A proxy or server without pub/sub must not make its holder look dead."""
    taken = lease.take(presence="channel")
    assert taken.presence == ""
    assert lease.store.observe().subscribers == -1
    assert lease.store.renew(taken.term, 2, "channel") != "late"
    assert lease.store.observe().subscribers == -1
    lease.subscribe("channel")
    renewed = lease.store.renew(taken.term, 3, "channel")
    assert isinstance(renewed, Renewed)
    assert renewed.presence == "channel"
    assert lease.store.observe().subscribers == 1


def test_absent_holder_loses_the_lease_and_a_present_one_keeps_it(lease: LeaseBench):
    """The campaign against an absent holder is refused while it is there."""
    lease.subscribe("channel")
    assert lease.take(presence="channel").presence == "channel"
    seen = standing(lease)
    lease.expect_refusal("two", replace(seen, absent=True))
    assert lease.store.observe().run_id == ""
    lease.unsubscribe("channel")
    view = lease.store.observe()
    assert view.subscribers == 0
    assert bool(view.run_id) is lease.knows_its_server
    lease.take("two", replace(seen, absent=True))


def test_presence_is_given_up_by_renewing_without(lease: LeaseBench):
    """As a leader does whose connection broke."""
    lease.subscribe("channel")
    term = lease.take(presence="channel").term
    lease.store.renew(term, 2, "")
    assert lease.store.observe().subscribers == -1


def test_another_app_is_refused_even_if_the_lease_is_free(lease: LeaseBench):
    """Two apps with one cluster name would enqueue each other's schedule."""
    term = lease.take().term
    lease.store.release(term, TermEnd.SHUTDOWN)
    with pytest.raises(ForeignApp):
        lease.store.acquire(attempt("two", fingerprint="other app"), standing(lease), 0)


def test_the_answer_tells_what_was_there_before(lease: LeaseBench):
    """By which the new leader knows whether state was lost."""
    first = lease.take("one")
    second = lease.take("two", standing(lease))
    assert first.previous_gens == ("", "")
    assert second.previous_gens == (first.term.gen, first.term.gen)
    assert second.term.gen == first.term.gen
    assert second.previous_holder == "one"
    assert second.previous_run_id == first.term.run_id


# --- What only a server's record can show


def test_the_lease_and_the_ledger_never_expire(bench: RedisBench):
    """Redis expires keys by its wall clock, which steps, and evicts keys with a TTL first."""
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    taken = store.acquire(attempt(), None, 0)
    assert isinstance(taken, Acquired)
    store.renew(taken.term, 2, "")
    assert [bench.client.ttl(key) for key in (KEYS.lease, KEYS.ledger)] == [-1, -1]


def test_a_lost_ledger_starts_a_new_incarnation_and_a_lost_lease_does_not(bench: RedisBench):
    """The positions are in the ledger: where it stands, nothing that matters was lost."""
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    for key in (KEYS.lease, KEYS.ledger):
        bench.client.flushall()
        before = store.acquire(attempt(), None, 0)
        assert isinstance(before, Acquired)
        expected = None if key == KEYS.lease else Expected(before.term.epoch, 1)
        bench.client.delete(key)
        if key == KEYS.ledger:
            assert isinstance(store.renew(before.term, 2, ""), Lost)
        after = store.acquire(attempt("two"), expected, 0)
        assert isinstance(after, Acquired)
        assert (after.term.gen == before.term.gen) is (key == KEYS.lease)
        assert after.term.epoch > before.term.epoch


def test_newer_software_is_not_led_over(bench: RedisBench):
    """A rolled-back replica would write records that the others have outgrown."""
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    bench.client.hset(KEYS.ledger, "m:schema", "99")
    with pytest.raises(NewerSchema, match="schema 99"):
        store.acquire(attempt(), None, 0)
    assert store.observe().record is None


def test_fields_of_newer_software_are_left_in_the_record(bench: RedisBench):
    """Software of two versions takes turns during a rolling deploy."""
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    taken = store.acquire(attempt(), None, 0)
    assert isinstance(taken, Acquired)
    bench.client.hset(KEYS.lease, "shoe_size", "43")
    view = store.observe()
    assert view.record is not None
    assert isinstance(store.renew(taken.term, 2, ""), Renewed)
    assert bench.client.hget(KEYS.lease, "shoe_size") == b"43"


def test_scripts_flushed_from_the_server_are_sent_again(bench: RedisBench):
    """SCRIPT FLUSH, or a failover to a server that never saw them."""
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    store.observe()
    bench.client.script_flush()
    assert isinstance(store.acquire(attempt(), None, 0), Acquired)


def test_a_full_redis_does_not_cost_the_lease(server_bench: RedisBench):
    """Lease scripts may run out of memory's way; else the leader would step down just when it is needed."""
    bench = server_bench
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    taken = store.acquire(attempt(), None, 0)
    assert isinstance(taken, Acquired)
    bench.client.config_set("maxmemory", "1")
    try:
        if int(bench.client.info("server")["redis_version"].split(".")[0]) < 7:
            with pytest.raises(StoreRefused, match="OOM"):
                store.renew(taken.term, 2, "")
            return
        assert isinstance(store.renew(taken.term, 2, ""), Renewed)
        assert store.release(taken.term, "shutdown")
        record = store.observe().record
        assert record is not None
        assert isinstance(store.acquire(attempt("two"), Expected(record.epoch, record.seq), 0), Acquired)
    finally:
        bench.client.config_set("maxmemory", "0")


def test_a_wrong_kind_of_key_is_an_error_and_not_a_lease(bench: RedisBench):
    """A key of another type under the name of the lease is an error with a reason."""
    bench.client.set(KEYS.lease, "mine")
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    for act in (store.observe, lambda: store.acquire(attempt(), None, 0)):
        with pytest.raises(StoreRefused, match=r"WRONGTYPE|wrong kind"):
            act()


def test_refused_campaign_has_a_reason(lease: LeaseBench):
    lease.take()
    answer = lease.store.acquire(attempt("two"), None, 0)
    assert answer == Refused(CampaignRefusal.MOVED)


@pytest.mark.parametrize("known_to", ["lease", "ledger", "seen"])
def test_the_epoch_is_above_each_that_is_known(server_bench: RedisBench, known_to: str):
    """Where the clock of Redis was put back: the lease, the ledger or the candidate knows of a higher one."""
    client = server_bench.client
    store = RedisLeaseStore(lambda: client, KEYS)
    first = store.acquire(attempt(), None, 0)
    assert isinstance(first, Acquired)
    ahead = first.term.epoch + 10**9
    if known_to == "lease":
        client.hset(KEYS.lease, "epoch", ahead)
    elif known_to == "ledger":
        client.hset(KEYS.ledger, "m:epoch", ahead)
    record = store.observe().record
    assert record is not None
    seen = ahead if known_to == "seen" else 0
    second = store.acquire(attempt("two"), Expected(record.epoch, record.seq), seen)
    assert isinstance(second, Acquired)
    assert second.term.epoch == ahead + 1


def test_a_ledger_that_is_not_the_leases_is_a_new_incarnation(bench: RedisBench):
    """One of the two was restored from elsewhere: what they say of each other is not to be believed."""
    store = RedisLeaseStore(lambda: bench.client, KEYS)
    before = store.acquire(attempt(), None, 0)
    assert isinstance(before, Acquired)
    bench.client.hset(KEYS.ledger, "m:gen", "restored")
    after = store.acquire(attempt("two"), Expected(before.term.epoch, 1), 0)
    assert isinstance(after, Acquired)
    assert after.term.gen not in (before.term.gen, "restored")
    assert after.previous_gens == (before.term.gen, "restored")


def test_a_renewal_counts_only_when_enough_replicas_have_it(shared_redis: RedisServer):
    """Without replicas, a failover would lose the renewal."""
    client = shared_redis.client()
    store = RedisLeaseStore(lambda: client, KEYS, wait_replicas=1, wait_timeout=0.05)
    taken = store.acquire(attempt(), None, 0)
    assert isinstance(taken, Acquired)
    with pytest.raises(StoreUnavailable, match="0 of 1 replicas"):
        store.renew(taken.term, 2, "")


NUMBERS = ("epoch", "seq", "ttl_ms", "pid", "since_ms", "renewed_ms", "offset_ms")


@pytest.mark.parametrize("garbage", ["", "garbage", "inf", "nan", "1e300", "-5", "9" * 30, b"\xff\xfe", None])
def test_a_record_that_was_tampered_with_can_be_taken_over(server_bench: RedisBench, garbage: str | bytes | None):
    """An invalid number counts as 0. Otherwise no replica would lead until an operator repairs the record."""
    client = server_bench.client
    store = RedisLeaseStore(lambda: client, KEYS)
    for fields in (*([name] for name in NUMBERS), NUMBERS):
        client.flushall()
        first = store.acquire(attempt(), None, 0)
        assert isinstance(first, Acquired)
        for field in fields:
            if garbage is None:
                client.hdel(KEYS.lease, field)
            else:
                client.hset(KEYS.lease, field, garbage)
        record = store.observe().record
        assert record is not None
        assert store.acquire(attempt("late"), Expected(record.epoch, record.seq + 1), 0) == Refused(
            CampaignRefusal.MOVED
        )
        taken = store.acquire(attempt("two"), Expected(record.epoch, record.seq), 0)
        assert isinstance(taken, Acquired)
        assert taken.term.epoch > first.term.epoch
        assert isinstance(store.renew(taken.term, 2, ""), Renewed)
        after = store.observe().record
        assert after is not None
        assert (after.holder, after.epoch, after.seq, after.ttl_ms) == ("two", taken.term.epoch, 2, 10_000)


@pytest.mark.parametrize("field", ["m:epoch", "m:schema", "m:run_id", "m:unfinished", "m:journal"])
def test_corrupt_ledger_fields_do_not_forbid_leading(server_bench: RedisBench, field: str):
    """Its numbers are no more than floors."""
    client = server_bench.client
    store = RedisLeaseStore(lambda: client, KEYS)
    first = store.acquire(attempt(), None, 0)
    assert isinstance(first, Acquired)
    for garbage in ("garbage", "", "inf", "nan"):
        client.hset(KEYS.ledger, field, garbage)
        record = store.observe().record
        assert record is not None
        taken = store.acquire(attempt("two"), Expected(record.epoch, record.seq), 0)
        assert isinstance(taken, Acquired)
        assert isinstance(store.renew(taken.term, 2, ""), Renewed)


def test_requests_key_of_another_type_does_not_stop_renewals(server_bench: RedisBench):
    """A key of another type under their name: no renewal would get an answer."""
    store = RedisLeaseStore(lambda: server_bench.client, KEYS)
    taken = store.acquire(attempt(), None, 0)
    assert isinstance(taken, Acquired)
    server_bench.client.set(KEYS.requests, "garbage")
    renewed = store.renew(taken.term, 2, "")
    assert isinstance(renewed, Renewed)
    assert renewed.requests == 0
