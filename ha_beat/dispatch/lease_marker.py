"""Lease marker: a record in the broker's Redis that names the Redis that holds the lease (rule 18 of the protocol).

Hazard
    Replicas that are configured with two lease stores elect two leaders, each with a valid lease, and enqueue every
    occurrence twice into the shared broker.

Rule
    A leader keeps the marker in the broker's Redis and does not dispatch without it. A standby that finds the marker of
    another store does not campaign. A marker that has not moved for two lease lifetimes is abandoned and may be
    replaced. In this way a lease can be moved to another Redis.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from typing import Any

from redis import exceptions as redis_errors

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
    the store's URL without a password. ``n`` grows with each write. ``holder`` is the replica that wrote the marker.
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


class _OtherStore:
    """Watch of another store's marker. Reports each incarnation of that store once."""

    def __init__(self, clock: Clock, report: Callable[[LeaseMark], None]) -> None:
        self._clock = clock
        self._report = report
        #: Replaced as a whole, since the election's thread reads it too.
        self.sighting: _Sighting | None = None
        self._reported_gen = ""

    @property
    def abandoned(self) -> bool:
        sighting = self.sighting
        return sighting is not None and sighting.abandoned(self._clock.elapsed())

    def found(self, mark: LeaseMark | None) -> None:
        """Record the marker that a check has found; ``None`` if there is none of another store."""
        if mark is None:
            self.sighting, self._reported_gen = None, ""
            return
        last = self.sighting
        if last is not None and (mark.gen, mark.n) == (last.mark.gen, last.mark.n):
            self.sighting = _Sighting(mark, last.since)
        else:
            self.sighting = _Sighting(mark, self._clock.elapsed())
        if mark.gen != self._reported_gen:
            self._reported_gen = mark.gen
            self._report(mark)


@dataclass(frozen=True, slots=True)
class _Write:
    """Time of a write under the term of ``nonce``."""

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
        duties: Duties,
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
        self._duties = duties
        self._script = Script("mark")
        #: Time of the next check; ``None`` before the first.
        self._check_at: float | None = None if broker is not None else 0.0
        self._kept = _Write()
        self._tried = _Write()
        self._other = _OtherStore(clock, self._report)
        #: Incarnation of this replica's store, as last read.
        self._gen = ""

    def may_campaign(self) -> bool:
        """True if this replica may campaign. Makes no round trip."""
        checked = self._check_at is not None
        return checked and (self._other.sighting is None or self._other.abandoned)  # guard: mark-foreign-standby

    def observe_as_standby(self) -> None:
        """Look, as a standby, for the marker of another store, once per second. Raises nothing."""
        self._duties.suspend(Duty.MARK_LEASE)
        now = self._clock.elapsed()
        if self._broker is None or (self._check_at is not None and now < self._check_at):
            return
        # An unreachable server does not forbid leading: a leader dispatches nothing before it has written the marker.
        with suppress(StoreError), mapped_redis_errors():
            self._other.found(self._of_other_store(read_mark(self._broker(), self._keys)))
        self._check_at = now + _CHECK_INTERVAL

    def refresh(self, term: Term) -> None:
        """Write the marker, as a leader, if a write is due and the broker is reachable.

        Raises:
            FencedOff: another store's leader is at work.
        """
        if not self._recent(self._tried, term):
            with suppress(StoreError):
                self.require(term)

    def require(self, term: Term) -> None:
        """Check, before a dispatch, that the marker is this store's. Makes a round trip every quarter of a lease.

        Raises:
            FencedOff: another store's leader is at work.
            StoreUnavailable: the broker did not answer, and nothing was done.
        """
        if self._broker is None or self._recent(self._kept, term):  # guard: mark-kept-first
            return
        now = self._clock.elapsed()
        self._tried = _Write(term.nonce, now)
        try:
            found = self._write(self._broker(), term)
        except StoreError as exc:
            self._duties.raised(Duty.MARK_LEASE, exc)
            if not isinstance(exc, StoreRefused) or code_of(exc.__cause__ or exc) != "NOPERM":
                raise StoreUnavailable.not_acted(exc) from exc
            # Without the right, this replica works without the marker.
            found = None
        else:
            self._duties.done(Duty.MARK_LEASE)
        # From now on, a marker of an earlier incarnation belongs to another store.
        self._gen = term.gen  # guard: mark-store-incarnation
        if found is not None:
            self._kept = _Write()
            self._other.found(found)
            raise FencedOff(TermEnd.FORBIDDEN, self._conflict(found))
        self._other.sighting, self._kept = None, _Write(term.nonce, now)

    def _write(self, broker: Any, term: Term) -> LeaseMark | None:
        """Write the marker. Return the marker of another store if it prevents the write."""
        sighting = self._other.sighting
        replaces = sighting.mark if sighting is not None and self._other.abandoned else None
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

    def _recent(self, last: _Write, term: Term) -> bool:
        return last.nonce == term.nonce and self._clock.elapsed() - last.at < self._own.ttl_ms / 4000

    # --- The marker of another store

    def _of_other_store(self, mark: LeaseMark | None) -> LeaseMark | None:
        """Return the marker if it names a store other than this replica's."""
        if mark is None or mark.gen == self._gen:
            return None
        client = self._store()
        gen = client.hget(self._keys.ledger, "m:gen")
        self._gen = text(gen) if gen is not None else ""
        same = mark.gen == self._gen or (mark.place and mark.place == place_of(client))
        return None if same or self._holder_is_member(mark) else mark

    def _holder_is_member(self, mark: LeaseMark) -> bool:
        """True if the marker's holder is registered in this store. It then uses this store, and the marker is older."""
        with suppress(StoreError), mapped_redis_errors():
            return bool(self._store().hexists(self._keys.members, mark.holder))  # guard: mark-registered-replica
        return False

    def _report(self, mark: LeaseMark) -> None:
        self._emit(events.LeadingForbidden(ForbiddenReason.OTHER_STORE, self._conflict(mark)))

    def _conflict(self, mark: LeaseMark) -> str:
        return two_stores(mark, self._keys, self._own.name)


def two_stores(mark: LeaseMark, keys: Keys, name: str) -> str:
    """Return a description of the conflict with the store named ``name``, and how to end it."""
    return (
        f"the lease of the cluster {keys.cluster!r} is kept in two stores: the broker's Redis names "
        f"{mark.name} (leader {mark.holder}), and this replica uses {name}. Set ha_beat_redis_url to the same URL in "
        f"all replicas. If the lease was moved, stop the replicas that use the old store: this replica continues "
        f"{mark.abandoned_after:g} s after their last write, or immediately when the key {keys.store} is deleted "
        f"from the broker's Redis"
    )


def read_mark(client: Any, keys: Keys) -> LeaseMark | None:
    """Return the marker in the broker's Redis, if there is one.

    Raises:
        StoreError: the broker's Redis did not answer, or refused.
    """
    with mapped_redis_errors():
        values = [text(value) if value is not None else "" for value in _read_fields(client, keys)]
    return _mark_of(values) if values[0] else None


def _read_fields(client: Any, keys: Keys) -> Any:
    if isinstance(client, WatchedClient):
        # A standby reads the marker each second. This takes half the processor time of an ordinary command.
        with suppress(redis_errors.ConnectionError):
            return client.read_again(packed("HMGET", keys.store, *_FIELDS))
        # The connection has ended since the last read. An ordinary command connects again.
    return client.hmget(keys.store, _FIELDS)


def place_of(client: Any) -> str:
    """Return the server's process and the database; empty if the process is unknown."""
    with suppress(StoreError, KeyError), mapped_redis_errors():
        return f"{client.info('server')['run_id']}/{_database(client)}"
    return ""


def _mark_of(values: list[str]) -> LeaseMark:
    gen, n, place, name, ttl_ms, holder = values
    return LeaseMark(gen, n, place, name, min(whole(ttl_ms), LONGEST_TTL_MS), holder)


def _database(client: Any) -> int:
    pool: Any = getattr(client, "connection_pool", None)
    return int(getattr(pool, "connection_kwargs", {}).get("db") or 0)
