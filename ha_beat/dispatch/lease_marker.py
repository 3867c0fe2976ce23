"""Lease marker: a record in the broker's Redis that names the Redis that holds the lease (rule 18 of the protocol).

Hazard
    Replicas that are configured with two lease stores elect two leaders, each with a valid lease, and enqueue every
    occurrence twice into the one broker.

Rule
    A leader keeps the marker in the broker's Redis and does not dispatch without it. A standby that finds the marker of
    another store does not campaign. A marker that has not moved for two lease lifetimes is abandoned and may be taken
    over, which is how a lease is moved to another Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.dispatch.protocol import FencedOff
from ha_beat.duties import Duties
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.reasons import Duty, ForbiddenReason, TermEnd
from ha_beat.store.connections import WatchedClient
from ha_beat.store.keys import Keys
from ha_beat.store.lease import LONGEST_TTL_MS, Term
from ha_beat.store.redis_errors import code_of, mapped_redis_errors
from ha_beat.store.scripts import Script, packed, text, whole

_FIELDS = ("gen", "n", "place", "name", "ttl_ms", "holder")

#: Seconds between two checks of a standby.
_CHECK_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class LeaseMark:
    """Marker as stored.

    ``gen`` is the incarnation of the store's records, ``place`` the store's server process and database, and ``name``
    its URL without a password. ``n`` grows with each write.
    """

    gen: str
    n: str = "0"
    place: str = ""
    name: str = ""
    ttl_ms: int = 0
    holder: str = ""

    @property
    def abandoned_after(self) -> float:
        """Return the seconds without a move after which the marker is abandoned: two lease lifetimes and a second."""
        return 2 * self.ttl_ms / 1000 + 1.0


@dataclass(frozen=True, slots=True)
class _Sighting:
    """Marker of another store, seen unchanged since a time on :meth:`Clock.elapsed`."""

    mark: LeaseMark
    since: float

    def abandoned(self, now: float) -> bool:
        return now - self.since > self.mark.abandoned_after


@dataclass(frozen=True, slots=True)
class _Last:
    """Time of the last write under the term of ``nonce``."""

    nonce: str = ""
    at: float = 0.0


class LeaseMarker:
    """Marker of one replica. Used by the main loop; :meth:`may_campaign` also by the election's thread."""

    def __init__(
        self,
        broker: Callable[[], Any] | None,
        store: Callable[[], Any],
        keys: Keys,
        own: LeaseMark,
        clock: Clock,
        emit: Callable[[events.Event], None],
        duties: Duties | None = None,
    ) -> None:
        """``broker`` and ``store`` return clients of the two servers; ``broker`` is ``None`` if it is not Redis.

        ``own`` has this replica's ``name``, ``ttl_ms`` and ``holder``. Without a Redis broker the marker does nothing.
        """
        self._broker = broker
        self._store = store
        self._keys = keys
        self._own = own
        self._clock = clock
        self._emit = emit
        self._duties = duties or Duties(clock, emit)
        self._script = Script("mark")
        self._check_at: float | None = None if broker is not None else 0.0
        self._kept = _Last()
        self._tried = _Last()
        self._other: _Sighting | None = None
        self._reported_gen = ""
        self._gen = ""

    def may_campaign(self) -> bool:
        """True if this replica may campaign. Makes no round trip."""
        return self._check_at is not None and (self._other is None or self._abandoned())  # guard: mark-foreign-standby

    def observe_as_standby(self) -> None:
        """Look, as a standby, for the marker of another store. Raises nothing."""
        self._duties.suspend(Duty.MARK_LEASE)
        now = self._clock.elapsed()
        if self._broker is None or (self._check_at is not None and now < self._check_at):
            return
        # An unreachable server does not forbid to lead: the leader dispatches nothing before it has kept the marker.
        with suppress(StoreError), mapped_redis_errors():
            self._record_other(self._of_other_store(read_mark(self._broker(), self._keys)))
        self._check_at = now + _CHECK_INTERVAL

    def refresh(self, term: Term) -> None:
        """Keep the marker, as a leader, if it is due and the broker is reachable.

        Raises:
            FencedOff: another store's leader is at work.
        """
        if not self._recent(self._tried, term):
            with suppress(StoreError):
                self.require(term)

    def require(self, term: Term) -> None:
        """Make sure, before a dispatch, that the marker is this store's. Makes a round trip every quarter of a lease.

        Raises:
            FencedOff: another store's leader is at work.
            StoreUnavailable: the broker did not answer, and nothing was done.
        """
        if self._broker is None or self._recent(self._kept, term):  # guard: mark-kept-first
            return
        now = self._clock.elapsed()
        self._tried = _Last(term.nonce, now)
        try:
            found = self._write(self._broker(), term)
        except StoreError as exc:
            self._duties.raised(Duty.MARK_LEASE, exc)
            if not isinstance(exc, StoreRefused) or code_of(exc.__cause__ or exc) != "NOPERM":
                raise StoreUnavailable.not_acted(exc) from exc
            # For want of a right this replica works without the marker.
            found = None
        else:
            self._duties.done(Duty.MARK_LEASE)
        # A marker of an earlier incarnation is not this store's any more.
        self._gen = term.gen  # guard: mark-store-incarnation
        if found is not None:
            self._kept = _Last()
            self._record_other(found)
            raise FencedOff(TermEnd.FORBIDDEN, self._conflict(found))
        self._other, self._kept = None, _Last(term.nonce, now)

    def _write(self, broker: Any, term: Term) -> LeaseMark | None:
        """Write the marker. Return the marker of another store if that one stands in the way."""
        other = self._other
        replaces = other.mark if other is not None and self._abandoned() else None
        place = f"{term.run_id}/{_database(self._store())}" if term.run_id else ""
        own = replace(self._own, gen=term.gen, place=place)
        found = self._run(broker, own, replaces)
        if found is not None and self._holder_is_member(found):
            found = self._run(broker, own, found)
        return found

    def _run(self, broker: Any, own: LeaseMark, replaces: LeaseMark | None) -> LeaseMark | None:
        expected = (replaces.gen, replaces.n) if replaces is not None else ("", "")
        argv = [own.gen, own.place, own.name, own.ttl_ms, own.holder, *expected]
        answer, *rest = (text(part) for part in self._script(broker, [self._keys.store], argv))
        return _mark_of(rest) if answer == "foreign" else None

    def _recent(self, last: _Last, term: Term) -> bool:
        return last.nonce == term.nonce and self._clock.elapsed() - last.at < self._own.ttl_ms / 4000

    # --- The marker of another store

    def _of_other_store(self, mark: LeaseMark | None) -> LeaseMark | None:
        """Return the marker if it names another store than this replica's."""
        if mark is None or mark.gen == self._gen:
            return None
        client = self._store()
        gen = client.hget(self._keys.ledger, "m:gen")
        self._gen = text(gen) if gen is not None else ""
        same = mark.gen == self._gen or (mark.place and mark.place == place_of(client))
        return None if same or self._holder_is_member(mark) else mark

    def _holder_is_member(self, mark: LeaseMark) -> bool:
        """True if the marker's holder is a member here, and so uses this store: it wrote the marker after a loss."""
        with suppress(StoreError), mapped_redis_errors():
            return bool(self._store().hexists(self._keys.members, mark.holder))  # guard: mark-registered-replica
        return False

    def _record_other(self, mark: LeaseMark | None) -> None:
        if mark is None:
            self._other, self._reported_gen = None, ""
            return
        other = self._other
        moved = other is None or (mark.gen, mark.n) != (other.mark.gen, other.mark.n)
        since = self._clock.elapsed() if moved or other is None else other.since
        self._other = _Sighting(mark, since)
        if mark.gen != self._reported_gen and not self._abandoned():
            self._reported_gen = mark.gen
            self._emit(events.LeadingForbidden(ForbiddenReason.OTHER_STORE, self._conflict(mark)))

    def _abandoned(self) -> bool:
        return self._other is not None and self._other.abandoned(self._clock.elapsed())

    def _conflict(self, mark: LeaseMark) -> str:
        return two_stores(mark, self._keys, self._own.name)


def two_stores(mark: LeaseMark, keys: Keys, name: str) -> str:
    """Return a description of the conflict with the store named ``name``, and how to end it."""
    return (
        f"the lease of the cluster {keys.cluster!r} is kept in two stores: the broker's Redis names "
        f"{mark.name} (leader {mark.holder}), and this replica uses {name}. Set ha_beat_redis_url to the same URL in "
        f"all replicas. If the lease was moved, stop the replicas that use the old store: this replica continues "
        f"{mark.abandoned_after:g} s after their last write, or at once when the key {keys.store} is deleted from the "
        f"broker's Redis"
    )


def read_mark(client: Any, keys: Keys) -> LeaseMark | None:
    """Return the marker in the broker's Redis, if there is one.

    Raises:
        StoreError: the broker's Redis did not answer, or refused.
    """
    with mapped_redis_errors():
        if isinstance(client, WatchedClient):
            # A standby reads it each second, and this takes half the processor time.
            found: Any = client.read_again(packed("HMGET", keys.store, *_FIELDS))
        else:
            found = client.hmget(keys.store, _FIELDS)
    values = [text(value) if value is not None else "" for value in found]
    return _mark_of(values) if values[0] else None


def place_of(client: Any) -> str:
    """Return the server process and its database; empty if the server does not tell."""
    with suppress(StoreError, KeyError), mapped_redis_errors():
        return f"{client.info('server')['run_id']}/{_database(client)}"
    return ""


def _mark_of(values: list[str]) -> LeaseMark:
    gen, n, place, name, ttl_ms, holder = values
    return LeaseMark(gen, n, place, name, min(whole(ttl_ms), LONGEST_TTL_MS), holder)


def _database(client: Any) -> int:
    pool: Any = getattr(client, "connection_pool", None)
    return int(getattr(pool, "connection_kwargs", {}).get("db") or 0)
