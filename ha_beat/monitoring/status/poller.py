"""Thread that registers the replica as a member and reads the state of the cluster, on its own connection."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from ha_beat import events
from ha_beat.clock import Clock
from ha_beat.errors import StoreError
from ha_beat.monitoring.invariants import CHECK_INTERVAL, InvariantChecker
from ha_beat.monitoring.status.journal_follower import JournalFollower
from ha_beat.monitoring.status.members import member_record
from ha_beat.monitoring.status.replica import ReplicaStatus
from ha_beat.monitoring.status.snapshot import Snapshot
from ha_beat.monitoring.status.unattended import UnattendedReader
from ha_beat.reasons import Duty, RedisRisk
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import Ledger
from ha_beat.store.membership import MEMBER_INTERVAL, ClusterView, Members
from ha_beat.store.server_facts import ServerSettings
from ha_beat.threads import RepeatingThread

#: Seconds between two polls of a replica that serves HTTP.
_POLL_INTERVAL = 1.0

#: Seconds between two reads of the Redis server's configuration.
_SERVER_INTERVAL = 30.0

#: Seconds without a completed poll after which the duty counts as late.
_POLL_WITHIN = 30.0

#: Most unreadable records that are reported one by one.
_MOST_REPORTED = 200

#: Seconds between a wake-up and the poll, because a change of leader comes as several events.
_SETTLING = 0.1


def certain_offset(difference: float, round_trip: float) -> float:
    """Return the least offset of two clocks that explains a difference, in seconds.

    One clock was read at an unknown time of the round trip, the other at its end. A slow answer is no clock offset.
    """
    return min(max(0.0, difference - round_trip), difference)


class _ServerReader:
    """Reader of the Redis server's configuration. It reports each risk of data loss once."""

    def __init__(self, members: Members, clock: Clock, emit: Callable[[events.Event], None]) -> None:
        self._members = members
        self._clock = clock
        self._emit = emit
        self._read_at = float("-inf")
        self._reported: set[RedisRisk] = set()
        self.settings: ServerSettings | None = None

    def read(self) -> None:
        """Read the configuration, at most once per interval.

        Raises:
            StoreError: Redis did not answer.
        """
        now = self._clock.elapsed()
        if now - self._read_at <= _SERVER_INTERVAL:
            return
        settings = self.settings = self._members.server_settings()
        self._read_at = now
        for risk in settings.risks() if settings else ():
            if risk not in self._reported:
                self._reported.add(risk)
                policy = settings.eviction_policy if settings and risk is RedisRisk.EVICTION else ""
                self._emit(events.ServerMayForget(risk, policy))


class Poller(RepeatingThread):
    """Thread that updates a replica's snapshot. No other thread waits for it."""

    def __init__(
        self,
        status: ReplicaStatus,
        client: Callable[[], Any],
        keys: Keys,
        clock: Clock,
        *,
        full: bool,
        compare_clocks: Callable[[Sequence[float]], None],
        emit: Callable[[events.Event], None],
    ) -> None:
        """With ``full``, read the state of the cluster; without, only register the replica.

        ``compare_clocks`` is called while this replica leads, with the seconds by which the clocks of the other
        replicas are ahead of Redis' clock.
        """
        interval = _POLL_INTERVAL if full else MEMBER_INTERVAL
        super().__init__(name="ha_beat-poller", interval=interval, clock=clock, emit=emit)
        status.memory.poll_now = self.wake
        self._status = status
        self._full = full
        journal = Journal(client, keys)
        self._members = Members(client, keys)
        self._journal = JournalFollower(journal, lambda: self._closing)
        self._server = _ServerReader(self._members, clock, emit)
        self._unattended = UnattendedReader(Ledger(client, keys), clock)
        self._checker = InvariantChecker(self._members, journal, emit)
        self._check_at = float("-inf")
        self._compare_clocks = compare_clocks
        #: Unreadable records that were reported.
        self._reported: set[str] = set()
        #: True once the member record is removed.
        self.removed = False

    # --- The thread

    def begin(self) -> None:
        self._status.duties.expect(Duty.POLL_CLUSTER, within=_POLL_WITHIN)

    def turn(self) -> None:
        try:
            self.poll()
        except Exception as exc:
            self._status.duties.raised(Duty.POLL_CLUSTER, exc)

    def wait(self, seconds: float) -> bool:
        woken = super().wait(seconds)
        if woken and not self._closing:
            self._clock.sleep(_SETTLING)
        return woken

    def end(self) -> None:
        self._members.remove(self._status.replica.id)
        self.removed = True

    # --- One poll

    def poll(self) -> None:
        """Register the replica, and update the snapshot."""
        status = self._status
        try:
            if status.snapshot.unreachable:
                # An offset from before the outage may be wrong, and the leader lets the members' clocks vote.
                sent = self._clock.elapsed()
                offset = self._offset(self._members.server_ms(), sent)
                status.snapshot = replace(status.snapshot, clock_offset=offset)
            status.snapshot = self._read()
        except StoreError as exc:
            status.snapshot = replace(status.snapshot, unreachable=str(exc))
            status.duties.raised(Duty.POLL_CLUSTER, exc)
        else:
            status.duties.done(Duty.POLL_CLUSTER)

    def _read(self) -> Snapshot:
        """Write the member record, and return a new snapshot."""
        member = member_record(self._status)
        leading = member.role == "leader"
        sent = self._clock.elapsed()
        view = self._members.view(member, clean=leading) if self._full or leading else None
        server_ms = view.server_ms if view else self._members.announce(member)
        offset, received = self._offset(server_ms, sent), self._clock.elapsed()
        if self._full or self._server.settings is None:
            self._server.read()
        if leading and view is not None:
            self._compare_clocks([each.clock_offset_ms / 1000 for each in view.members if each.id != member.id])
        snapshot = Snapshot(polled_at=received, round_trip=received - sent, clock_offset=offset, unreachable="")
        if self._full and view is not None:
            self._journal.follow(view)
            snapshot = replace(
                snapshot,
                view=view,
                recent=self._journal.recent(),
                terms=self._journal.terms(view),
                unattended=self._unattended.read(view),
                unreadable=self._unreadable_records(view),
            )
        if self._full or leading:
            self._check_invariants()
        return replace(snapshot, server=self._server.settings)

    def _offset(self, server_ms: int, sent: float) -> float:
        """Return this machine's clock minus Redis', which was read after ``sent``, in seconds."""
        wall = self._clock.wall()
        return certain_offset(wall - server_ms / 1000, self._clock.elapsed() - sent)

    def _unreadable_records(self, view: ClusterView) -> tuple[str, ...]:
        """Return the names of the records that cannot be read. Each is reported once."""
        names = [*view.unreadable, *(f"journal {each}" for each in self._journal.unreadable)]
        if view.paused and not Pause.parse(view.paused).since_ms:
            names.append("pause")
        for name in names:
            if name not in self._reported and len(self._reported) < _MOST_REPORTED:
                self._reported.add(name)
                self._emit(events.RecordUnreadable(name))
        return tuple(names)

    def _check_invariants(self) -> None:
        now = self._clock.elapsed()
        if now - self._check_at >= CHECK_INTERVAL:
            self._check_at = now
            self._checker.check()
