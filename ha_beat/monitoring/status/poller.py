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
from ha_beat.monitoring.status.replica import ReplicaStatus
from ha_beat.monitoring.status.snapshot import Snapshot
from ha_beat.monitoring.status.unattended import NOTHING_UNATTENDED, unattended
from ha_beat.reasons import Duty, RedisRisk
from ha_beat.store.cluster_pause import Pause
from ha_beat.store.journal import Journal
from ha_beat.store.keys import Keys
from ha_beat.store.ledger import Ledger
from ha_beat.store.membership import MEMBER_INTERVAL, ClusterView, Members
from ha_beat.store.server_facts import ServerSettings
from ha_beat.threads import RepeatingThread

#: Seconds between two polls of a replica that serves its state.
_POLL_INTERVAL = 1.0

#: Seconds between two reads of the Redis server's configuration.
_SERVER_INTERVAL = 30.0

#: Seconds without a completed poll after which the duty counts as late.
_POLL_WITHIN = 30.0

#: Most unreadable records that are reported one by one.
_MOST_REPORTED = 200

#: Seconds without a leader's queue after which the ledger is read for what is due, and between two such reads.
_UNATTENDED_AFTER = 10.0
_LEDGER_INTERVAL = 15.0

#: Seconds between a request to poll and the poll: a change of leader comes as several events.
_MOMENT = 0.1


def certain_offset(difference: float, round_trip: float) -> float:
    """Return the least offset of two clocks that explains a difference, in seconds.

    One clock was read at an unknown time of the round trip, the other at its end. A slow answer is no clock offset.
    """
    return min(max(0.0, difference - round_trip), difference)


class Poller(RepeatingThread):
    """Thread that updates a replica's snapshot. No other thread waits for it.

    It has more than 15 attributes: each thing that it reads has its own period.
    """

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
        """With ``full`` it reads the state of the cluster, else it only registers the replica.

        While this replica leads, ``compare_clocks`` gets the seconds by which the others' clocks are ahead of Redis'
        clock.
        """
        interval = _POLL_INTERVAL if full else MEMBER_INTERVAL
        super().__init__(name="ha_beat-poller", interval=interval, clock=clock, emit=emit)
        status.memory.poll_now = self.wake
        self._status = status
        self._clock = clock
        self._full = full
        journal = Journal(client, keys)
        self._members = Members(client, keys)
        self._journal = JournalFollower(journal, lambda: self._closing)
        self._ledger = Ledger(client, keys)
        self._checker = InvariantChecker(self._members, journal, emit)
        self._compare_clocks = compare_clocks
        self._emit = emit
        self._check_at = float("-inf")
        self._server_at = float("-inf")
        self._server: ServerSettings | None = None
        self._known_risks: set[RedisRisk] = set()
        #: Since when no leader has taken up the schedule, and when the ledger is read next.
        self._unattended_since: float | None = None
        self._ledger_at = 0.0
        self._unattended = NOTHING_UNATTENDED
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
            self._clock.sleep(_MOMENT)
        return woken

    def end(self) -> None:
        self._members.remove(self._status.replica.id)
        self.removed = True

    # --- One poll

    def poll(self) -> None:
        """Register the replica, and update the snapshot."""
        status, before = self._status, self._status.snapshot
        try:
            if before.unreachable:
                # The leader lets the clocks of the members vote, so a record never has an offset that is unknown.
                sent = self._clock.elapsed()
                status.snapshot = before = replace(before, clock_offset=self._offset(self._members.server_ms(), sent))
            member = status.member()
            leading = member.role == "leader"
            sent = self._clock.elapsed()
            view = self._members.view(member, clean=leading) if self._full or leading else None
            server_ms = view.server_ms if view else self._members.announce(member)
            offset, received = self._offset(server_ms, sent), self._clock.elapsed()
            if self._full or self._server is None:
                self._read_server()
            if leading and view is not None:
                self._compare_clocks([each.clock_offset_ms / 1000 for each in view.members if each.id != member.id])
            view = view if self._full else None
            if view is not None:
                self._journal.follow(view)
                self._read_unattended(view)
            self._check(leading=leading)
        except StoreError as exc:
            status.snapshot = replace(before, unreachable=str(exc))
            status.duties.raised(Duty.POLL_CLUSTER, exc)
            return
        status.duties.done(Duty.POLL_CLUSTER)
        status.snapshot = Snapshot(
            view=view,
            polled_at=received,
            round_trip=received - sent,
            clock_offset=offset,
            unreachable="",
            server=self._server,
            recent=self._journal.recent(),
            terms=self._journal.terms(view) if view else (),
            unattended=self._unattended,
            unreadable=self._unreadable(view) if view else (),
        )

    def _offset(self, server_ms: int, sent: float) -> float:
        """Return this machine's clock minus Redis', which was read since ``sent``, in seconds."""
        wall = self._clock.wall()
        return certain_offset(wall - server_ms / 1000, self._clock.elapsed() - sent)

    def _unreadable(self, view: ClusterView) -> tuple[str, ...]:
        """Return the names of the records that cannot be read. Each is reported once."""
        names = [*view.unreadable, *(f"journal {each}" for each in self._journal.unreadable)]
        if view.paused and not Pause.parse(view.paused).since_ms:
            names.append("pause")
        for name in names:
            if name not in self._reported and len(self._reported) < _MOST_REPORTED:
                self._reported.add(name)
                self._emit(events.RecordUnreadable(name))
        return tuple(names)

    def _read_unattended(self, view: ClusterView) -> None:
        """Read from the ledger what is due, seldom, and only while no leader has taken up the schedule for a while."""
        now = self._clock.elapsed()
        if view.taken_up:
            self._unattended_since, self._unattended = None, NOTHING_UNATTENDED
            return
        self._unattended_since = now if self._unattended_since is None else self._unattended_since
        if now - self._unattended_since >= _UNATTENDED_AFTER and now >= self._ledger_at:
            self._ledger_at = now + _LEDGER_INTERVAL
            self._unattended = unattended(self._ledger.read(), view.server_ms)

    def _check(self, *, leading: bool) -> None:
        now = self._clock.elapsed()
        if (leading or self._full) and now - self._check_at >= CHECK_INTERVAL:
            self._check_at = now
            self._checker.check()

    def _read_server(self) -> None:
        now = self._clock.elapsed()
        if now - self._server_at <= _SERVER_INTERVAL:
            return
        self._server, self._server_at = self._members.server_settings(), now
        if self._server is None:
            return
        for risk in self._server.risks():
            if risk not in self._known_risks:
                self._known_risks.add(risk)
                policy = self._server.eviction_policy if risk is RedisRisk.EVICTION else ""
                self._emit(events.ServerMayForget(risk, policy))
