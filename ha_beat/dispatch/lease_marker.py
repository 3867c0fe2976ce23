"""The mark in the broker's Redis that names the store of the cluster's lease (rule 18 of the protocol).

Replicas that are set to two stores would elect two leaders, each of them rightly, and enqueue everything twice into the
one broker. So a leader keeps a mark there, and does not dispatch without it; a standby that finds another store's mark
does not campaign. A mark that has not moved for two lifetimes of a lease is one that nobody keeps, and is taken over:
that is how a lease's Redis can be moved.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from redis.exceptions import RedisError

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.dispatch.protocol import FencedOff
from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.reasons import TermEnd
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term
from ha_beat.store.redis_errors import code_of, mapped_redis_errors
from ha_beat.store.scripts import Script, text, whole

_FIELDS = ("gen", "n", "place", "name", "ttl_ms", "holder")

#: Between two looks of a standby, in seconds.
_LOOK_INTERVAL = 1.0


@dataclass(frozen=True, slots=True)
class Mark:
    """As it stands in the broker's Redis.

    ``gen`` is the incarnation of the store's records, ``place`` the server process and database, ``name`` its URL.
    ``n`` grows each time that it is kept.
    """

    gen: str
    n: str = "0"
    place: str = ""
    name: str = ""
    ttl_ms: int = 0
    holder: str = ""

    @property
    def patience(self) -> float:
        """Seconds after which a mark that has not moved is nobody's: its cluster would have a new leader by then."""
        return 2 * self.ttl_ms / 1000 + 1.0


class StoreMark:
    """For the main loop. ``broker`` and ``store`` are clients for the two servers, asked for at each use."""

    def __init__(
        self,
        broker: Callable[[], Any],
        store: Callable[[], Any],
        keys: Keys,
        name: str,
        holder: str,
        ttl: float,
        clock: Clock,
        emit: Callable[[events.Event], None],
    ) -> None:
        """``name`` is the store's URL without a password, ``ttl`` the lease's, in seconds."""
        self._broker = broker
        self._store = store
        self._keys = keys
        self._name = name
        self._holder = holder
        self._ttl = ttl
        self._clock = clock
        self._emit = emit
        self._script = Script("mark")
        self._looked = False
        self._look_at = 0.0
        self._kept: tuple[str, float] = ("", 0.0)
        self._tried: tuple[str, float] = ("", 0.0)
        #: The mark of another store, and when it was first seen as it is.
        self._other: Mark | None = None
        self._other_since = 0.0
        self._told = ""
        self._unmarked = False
        self._gen = ""

    def permits(self) -> bool:
        """Whether this replica may campaign. Costs nothing."""
        return self._looked and (self._other is None or self._stale())  # guard: mark-foreign-standby

    # --- Standing by

    def look(self) -> None:
        """See whether another store's leader is at work. Raises nothing."""
        now = self._clock.elapsed()
        if self._looked and now < self._look_at:
            return
        self._look_at = now + _LOOK_INTERVAL
        # Out of reach, it does not forbid to lead: nothing is dispatched before it can be asked.
        with suppress(StoreError, RedisError, OSError):
            self._see(self._foreign(read_mark(self._broker(), self._keys)))
        self._looked = True

    def _foreign(self, mark: Mark | None) -> Mark | None:
        if mark is None or mark.gen == self._gen:
            return None
        client = self._store()
        gen = client.hget(self._keys.ledger, "m:gen")
        self._gen = text(gen) if gen is not None else ""
        same = mark.gen == self._gen or (mark.place and mark.place == place_of(client))
        return None if same or self._is_of_this_store(mark) else mark

    def _is_of_this_store(self, mark: Mark) -> bool:
        """Whether its holder is registered here, a replica having one store: it kept its mark right after a loss."""
        with suppress(StoreError, RedisError, OSError):
            return bool(self._store().hexists(self._keys.members, mark.holder))  # guard: mark-registered-replica
        return False

    # --- Leading

    def keep(self, term: Term) -> None:
        """Keep the mark, as often as is needed, where the broker can be reached.

        Raises:
            FencedOff: another store's leader is at work.
        """
        if not self._lately(self._tried, term):
            with suppress(StoreError):
                self.require(term)

    def require(self, term: Term) -> None:
        """Make sure of the mark before something is dispatched: no round trip where that was done a moment ago.

        Raises:
            FencedOff: another store's leader is at work.
            StoreUnavailable: the broker can't be asked, and nothing was done.
        """
        if self._lately(self._kept, term):  # guard: mark-kept-first
            return
        now = self._clock.elapsed()
        self._tried = (term.nonce, now)
        other = self._other
        stale = (other.gen, other.n) if other is not None and self._stale() else ("", "")
        place = f"{term.run_id}/{_database(self._store())}" if term.run_id else ""
        try:
            reply = self._keep(term, place, stale)
            found = _found(reply)
            if found is not None and self._is_of_this_store(found):
                reply = self._keep(term, place, (found.gen, found.n))
        except StoreRefused as exc:
            if code_of(exc.__cause__ or exc) != "NOPERM":
                raise StoreUnavailable(str(exc), acted=False) from exc
            # Without the right there is no check.
            if not self._unmarked:
                self._unmarked = True
                self._emit(events.StoreUnmarked(str(exc)))
            reply = ["kept"]
        except StoreError as exc:
            raise StoreUnavailable(str(exc), acted=False) from exc
        found = _found(reply)
        # Whatever it was before: a mark of that is not this store's any more.
        self._gen = term.gen  # guard: mark-store-incarnation
        if found is not None:
            self._kept = ("", 0.0)
            self._see(found)
            raise FencedOff(TermEnd.FORBIDDEN, self._why())
        self._other, self._kept = None, (term.nonce, now)

    def _keep(self, term: Term, place: str, stale: tuple[str, str]) -> Any:
        argv = [term.gen, place, self._name, round(self._ttl * 1000), self._holder, *stale]
        return self._script(self._broker(), [self._keys.store], argv)

    def _lately(self, when: tuple[str, float], term: Term) -> bool:
        return when[0] == term.nonce and self._clock.elapsed() - when[1] < self._ttl / 4

    # --- Another store's

    def _see(self, mark: Mark | None) -> None:
        if mark is None:
            self._other, self._told = None, ""
            return
        if self._other is None or (mark.gen, mark.n) != (self._other.gen, self._other.n):
            self._other_since = self._clock.elapsed()
        self._other = mark
        if mark.gen != self._told and not self._stale():
            self._told = mark.gen
            self._emit(events.LeadingForbidden(self._why()))

    def _stale(self) -> bool:
        other = self._other
        return other is not None and self._clock.elapsed() - self._other_since > other.patience

    def _why(self) -> str:
        return two_stores(self._other, self._keys, self._name) if self._other is not None else ""


def _found(reply: Any) -> Mark | None:
    """The mark of another store that stands in the way."""
    answer, *rest = (text(part) for part in reply)
    if answer != "foreign":
        return None
    gen, n, place, name, ttl_ms, holder = rest
    return Mark(gen, n, place, name, whole(ttl_ms), holder)


def two_stores(mark: Mark, keys: Keys, name: str) -> str:
    """What is wrong, and the ways out of it."""
    return (
        f"the lease of the cluster {keys.cluster!r} is kept in two stores: the broker's Redis says that it is in "
        f"{mark.name} (leader {mark.holder}), and this replica is set to {name}. Set ha_beat_redis_url to the same in "
        f"all replicas. If the lease was moved, stop the replicas that use the old store: {mark.patience:g} s after "
        f"their last sign of life this one goes on, or at once when the key {keys.store} is deleted from the broker's "
        f"Redis"
    )


def read_mark(client: Any, keys: Keys) -> Mark | None:
    """The mark in the broker's Redis, if there is one."""
    with mapped_redis_errors():
        values = [text(value) if value is not None else "" for value in client.hmget(keys.store, _FIELDS)]
    gen, n, place, name, ttl_ms, holder = values
    return Mark(gen, n, place, name, whole(ttl_ms), holder) if gen else None


def place_of(client: Any) -> str:
    """The server process and its database; empty where that can't be known."""
    try:
        return f"{client.info('server')['run_id']}/{_database(client)}"
    except (RedisError, OSError, KeyError):
        return ""


def _database(client: Any) -> int:
    pool: Any = getattr(client, "connection_pool", None)
    return int(getattr(pool, "connection_kwargs", {}).get("db") or 0)
