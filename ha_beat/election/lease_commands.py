"""Commands of the election to the lease's store, and what each answer tells about Redis."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import TypeVar

from ha_beat.clock import Clock
from ha_beat.duties import Duties
from ha_beat.election.cluster_clock import AGREEMENT, SchedulingTime
from ha_beat.election.connectivity import Command, Connectivity
from ha_beat.election.leader_handle import LeaderHandle, TermOrigin
from ha_beat.election.presence_keeper import PresenceKeeper
from ha_beat.election.states import Campaign, Campaigned, Forbidden, Release, Renew, Renewal, Standby, Timing, Unknown
from ha_beat.errors import LeadershipForbidden, StoreError
from ha_beat.reasons import Duty
from ha_beat.store.lease import Acquired, Attempt, LeaseStore, LeaseView, Renewed, Replica, new_token

_T = TypeVar("_T")


class LeaseCommands:
    """Sender of the commands. Used by the election thread only.

    Each answer shows that Redis is reachable and that the duty of the lease is done. Most have the server's time.
    """

    def __init__(
        self,
        store: LeaseStore,
        replica: Replica,
        timing: Timing,
        clock: Clock,
        time: SchedulingTime,
        connectivity: Connectivity,
        presence: PresenceKeeper,
        duties: Duties,
        handle: LeaderHandle,
    ) -> None:
        self._store = store
        self._replica = replica
        self._timing = timing
        self._clock = clock
        self._time = time
        self._connectivity = connectivity
        self._presence = presence
        self._duties = duties
        self._handle = handle

    def observe(self) -> LeaseView | Unknown:
        """Read the lease."""
        return self._ask(self._store.observe, "observation")

    def campaign(self, state: Standby, campaign: Campaign, now: float) -> Campaigned | Forbidden:
        """Try to acquire the lease. A success sets the handle's ``origin``. ``now`` is on ``Clock.elapsed``."""
        timing, channel = self._timing, self._presence.channel
        leaders_offset = state.sighting.record.offset if state.sighting is not None else None
        # The script judges the first batch by this offset, not by the last leader's.
        offset = self._time.offset_in_term(leaders_offset)  # guard: clock-own-offset
        attempt = Attempt(self._replica, new_token(), now, timing.ttl, timing.margin, channel, campaign.reason, offset)
        try:
            answer = self._ask(lambda: self._store.acquire(attempt, campaign.expected, state.seen_epoch), "campaign")
        except LeadershipForbidden as exc:
            return Forbidden(exc.reason, str(exc))
        if isinstance(answer, Acquired):
            self._time.vote_at_term_start(leaders_offset)
            self._connectivity.acquired(server_changed=answer.server_changed)
            self._handle.origin = self._origin(answer, campaign)
        return Campaigned(answer, attempt.nonce)

    def _origin(self, acquired: Acquired, campaign: Campaign) -> TermOrigin:
        lost_at, back_at = self._connectivity.lost_at, self._connectivity.back_at
        if lost_at is None:
            return TermOrigin(acquired, campaign.reason, None, back_at)
        lost = self._time.now() - timedelta(seconds=self._clock.elapsed() - lost_at)
        return TermOrigin(acquired, campaign.reason, lost, back_at)

    def renew(self, renewal: Renew, now: float) -> Renewal | Unknown:
        """Renew the lease. ``now`` is on ``Clock.elapsed``."""
        channel = self._presence.channel if renewal.presence else ""
        sent = self._time.offset
        answer = self._ask(lambda: self._store.renew(renewal.term, renewal.seq, channel), "renewal")
        if isinstance(answer, Unknown):
            return answer
        # If Redis' clock stepped, the script refuses due occurrences until the record has the new offset.
        return Renewal(answer, now, outdated=abs(self._time.offset - sent) > AGREEMENT / 2)

    def release(self, release: Release) -> None:
        """Release the lease. An unknown outcome is left alone: the lease then expires."""
        store = self._store
        self._ask(lambda: store.release(release.term, release.reason, release.detail, release.preferred), "release")

    def _ask(self, command: Callable[[], _T], name: Command) -> _T | Unknown:
        sent_at = self._clock.elapsed()
        try:
            answer = command()
        except StoreError as exc:
            if self._connectivity.reachable:
                self._presence.outage_began()
            self._connectivity.failed(name, str(exc), leading=self._handle.term is not None)
            return Unknown(str(exc))
        self._duties.done(Duty.LEASE)
        received_at = self._clock.elapsed()
        self._connectivity.succeeded(name)
        if isinstance(answer, LeaseView | Renewed | Acquired):
            self._time.redis_said(answer.server_ms, sent_at, received_at)
        return answer
