"""Rules by which a standby finds the lease free: released, expired, its own, or its holder gone."""

from __future__ import annotations

from dataclasses import replace

from ha_beat.election.states import Campaign, Sighting, Standby, Timing
from ha_beat.reasons import TermStart
from ha_beat.store.lease import Expected, LeaseRecord, LeaseView

#: Tolerance in seconds for sums of floats.
_ROUNDING = 1e-6

#: Seconds, or polls if those last longer, for which the others wait for a preferred replica.
PREFERENCE, PREFERENCE_POLLS = 1.0, 3


def see(before: Sighting | None, view: LeaseView, record: LeaseRecord, now: float) -> Sighting:
    """Return the sighting that follows from this view. A state that has not changed keeps its instant."""
    unmoved = before is not None and (before.record.epoch, before.record.seq, before.record.state) == (
        record.epoch,
        record.seq,
        record.state,
    )
    since = before.since if before is not None and unmoved else now
    # After a restart or failover of Redis all channels are empty, so absence proves nothing.
    if record.run_id and view.run_id not in ("", record.run_id):  # guard: presence-same-server
        seen_moved = before is not None and unmoved and before.moved_since is not None
        return Sighting(record, since, moved_since=before.moved_since if before is not None and seen_moved else now)
    if view.subscribers != 0:
        return Sighting(record, since)
    same_absence = (
        before is not None
        and unmoved  # guard: presence-unrenewed
        and before.absent_since is not None
        and before.run_id == view.run_id
    )
    absent_since = before.absent_since if before is not None and same_absence else now
    return Sighting(record, since, absent_since, view.run_id)


def campaign_for(state: Standby, sighting: Sighting, counted: str, now: float, timing: Timing) -> Campaign | None:
    """Return a campaign if the lease is free, else ``None``. ``counted`` is as in :class:`Standby`, after this poll."""
    record = sighting.record
    expected = Expected(record.epoch, record.seq)
    if not record.held:
        if not record.preferred:
            return Campaign(expected, TermStart.RELEASED)
        open_at = sighting.since + max(PREFERENCE, PREFERENCE_POLLS * timing.poll_interval)
        return Campaign(expected, TermStart.RELEASED, record.preferred, open_at)
    if record.nonce in state.nonces:  # guard: campaign-own-nonce
        return Campaign(expected, TermStart.OWN_LEASE)
    absent_since = sighting.absent_since if _absence_counts(state, sighting, counted) else None
    if absent_since is not None and now - absent_since >= timing.poll_interval - _ROUNDING:  # guard: presence-absence
        return Campaign(replace(expected, absent=True), TermStart.LEADER_GONE)
    # An unreadable ttl parses as 0.
    ttl = record.ttl_ms / 1000 or timing.ttl
    if now - sighting.since >= ttl and not _holder_goes_first(sighting, ttl, now, timing):
        return Campaign(expected, TermStart.EXPIRED)
    return None


def _holder_goes_first(sighting: Sighting, ttl: float, now: float, timing: Timing) -> bool:
    """True for a moment after a restart or failover of Redis that outlasted the lease.

    On a new server the holder may dispatch immediately. Any other replica has to wait, from the first contact on, until
    the holder must have stopped. Leaving the lease to the holder for a part of that wait costs nothing.
    """
    return (
        sighting.moved_since is not None
        and now - sighting.moved_since < min(timing.preference_wait, ttl)  # guard: campaign-holder-first
    )


def _absence_counts(state: Standby, sighting: Sighting, counted: str) -> bool:
    """True if an empty presence channel means that the holder is gone. An outage empties all channels."""
    record = sighting.record
    if record.presence == counted:  # guard: presence-channel-seen
        return True
    # On this run of the server, the channel had a subscriber when it was registered.
    return state.unbroken and (
        record.run_id != "" and record.run_id == sighting.run_id  # guard: presence-newcomer-server
    )
