"""Whether Redis has lost state since it was last known, and from when on the ledger can be believed again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ha_beat.clock import from_micros, to_micros
from ha_beat.reasons import LossKind
from ha_beat.store.ledger import ServerFacts
from ha_beat.store.shadow import Shadow

#: After a total loss nothing due earlier than this from now, or from the server's start, is believed not to have been
#: enqueued: the clock of who did may be ahead.
_GUARD = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Loss:
    """State was, or may have been, lost. What was due up to ``floor`` may have been enqueued already.

    ``total`` is False where the ledger itself stands, and only what was under way when the server went is in doubt.
    """

    kind: LossKind
    floor: datetime
    total: bool

    def encoded(self) -> str:
        """For the next leader, should this one end before it has seen to it."""
        return f"{to_micros(self.floor)} {int(self.total)}"


def assess(
    *,
    gen: str,
    previous_gens: tuple[str, str],
    shadow: Shadow,
    rows: Mapping[str, str],
    facts: ServerFacts | None,
    contact_lost: datetime | None,
    now: datetime,
    reached_at: datetime | None = None,
) -> Loss | None:
    """Judge what an acquisition found.

    ``facts`` are given where another server process answers than the one that the ledger was written on.
    ``contact_lost`` is when this replica found that it had lost contact with that one, where it did, and ``reached_at``
    when it reached this one.
    """
    lease_gen, ledger_gen = previous_gens
    if gen not in previous_gens:  # guard: loss-new-gen
        if not (lease_gen or ledger_gen or shadow.gen):
            return None
        kind = LossKind.LEDGER_LOST if lease_gen or ledger_gen else LossKind.LEASE_AND_LEDGER_LOST
        return Loss(kind, now + _GUARD, total=True)
    # Also where it has another incarnation's: who has seen to that loss may not have had all entries.
    behind = shadow.ahead_of(rows, now)
    if facts is None:
        if behind:
            return Loss(LossKind.LEDGER_BEHIND, now + _GUARD, total=True)
        return None
    if facts.promoted:
        doubt_until = now + _GUARD
        if facts.min_replicas:
            # Cut off with a leader, the old primary takes writes for so long yet. It was primary until this one was.
            lag = timedelta(seconds=facts.max_lag)  # guard: failover-lag
            doubt_until = max(doubt_until, (reached_at or now) + lag + _GUARD)
        return _after_failover(facts, doubt_until, known=shadow.gen == gen, behind=behind, contact_lost=contact_lost)
    # Its uptime is by a clock that steps; the server before was heard of until contact was lost.
    floor = max(facts.started_at, contact_lost or facts.started_at)
    floor += _GUARD  # guard: loss-clock-ahead
    if behind:
        return Loss(LossKind.RESTARTED_BEHIND, floor, total=True)
    if not facts.append_only:  # guard: loss-no-append-only
        # No shadow is known to reach to the server's end: a standby's is behind, and who was the leader can't know
        # whether it was the last one.
        return Loss(LossKind.RESTARTED_WITHOUT_AOF, floor, total=True)
    if contact_lost is None:
        return None
    return Loss(LossKind.RESTARTED, contact_lost, total=False)


def with_unfinished(loss: Loss | None, unfinished: str, now: datetime) -> Loss:
    """The last leader had found a loss, and ended before it had seen to it; it has dispatched nothing since."""
    try:
        micros, total = unfinished.split(" ")
        found = Loss(LossKind.UNFINISHED, from_micros(int(micros)), total == "1")
    except (ValueError, OverflowError):
        found = Loss(LossKind.UNFINISHED_UNREADABLE, now + _GUARD, total=True)
    if loss is None:
        return found
    return Loss(loss.kind, max(loss.floor, found.floor), loss.total or found.total)


def _after_failover(
    facts: ServerFacts, doubt_until: datetime, *, known: bool, behind: bool, contact_lost: datetime | None
) -> Loss:
    """A server that was there before, as a replica, may lack what was enqueued until this very moment."""
    if behind:
        return Loss(LossKind.FAILED_OVER_BEHIND, doubt_until, total=True)
    if not known or contact_lost is None:  # guard: failover-no-witness
        return Loss(LossKind.FAILED_OVER_UNKNOWN, doubt_until, total=True)
    # Only where the old primary stops by itself, for want of replicas, is that a case for which anything is promised.
    floor = doubt_until if facts.min_replicas else contact_lost  # guard: failover-old-primary
    if not facts.append_only:
        # A primary that has replicas and comes back from a snapshot looks as if it had been promoted.
        floor = max(floor, facts.started_at + _GUARD)  # guard: failover-or-restart
    return Loss(LossKind.FAILED_OVER, floor, total=False)
