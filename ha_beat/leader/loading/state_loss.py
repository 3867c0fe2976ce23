"""Detection of a loss of state in Redis, and of the time up to which the ledger is in doubt. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta

from ha_beat.clock import from_micros, to_micros
from ha_beat.reasons import LossKind
from ha_beat.store.server_facts import ServerFacts
from ha_beat.store.shadow import Shadow

#: Margin after a loss: the clock of the replica that enqueued the lost occurrences may be ahead by this much.
_CLOCK_MARGIN = timedelta(seconds=2)


@dataclass(frozen=True, slots=True)
class Loss:
    """State was, or may have been, lost. Occurrences due up to ``floor`` may have been enqueued.

    ``total`` is False if the ledger is intact and only the writes in flight when the server stopped are in doubt.
    """

    kind: LossKind
    floor: datetime
    total: bool

    def encoded(self) -> str:
        """Return the note for the next leader, in case this one ends before the recovery is complete."""
        return f"{to_micros(self.floor)} {int(self.total)}"


def assess(
    *,
    gen: str,
    previous_gens: tuple[str, str],
    shadow: Shadow,
    rows: Mapping[str, str],
    facts: ServerFacts | None,
    lost_at: datetime | None,
    now: datetime,
    reached_at: datetime | None = None,
) -> Loss | None:
    """Return the loss of state that an acquisition shows, if any.

    Args:
        gen: Incarnation of the state under the new term.
        previous_gens: Incarnations that the lease and the ledger had before, empty if they had none.
        shadow: The positions that this replica knows to be acknowledged.
        rows: The ledger's raw rows by entry.
        facts: The server's facts, if it is another server process than the one that the ledger was written on.
        lost_at: When this replica noticed that it had lost contact with that process, if it did.
        now: The scheduling time.
        reached_at: When this replica first reached this process.
    """
    lease_gen, ledger_gen = previous_gens
    if gen not in previous_gens:  # guard: loss-new-gen
        if not (lease_gen or ledger_gen or shadow.gen):
            return None
        kind = LossKind.LEDGER_LOST if lease_gen or ledger_gen else LossKind.LEASE_AND_LEDGER_LOST
        return Loss(kind, now + _CLOCK_MARGIN, total=True)
    # This holds for a shadow of another incarnation, too: the leader that handled that loss may have lacked entries.
    behind = shadow.ahead_of(rows, now)
    if facts is None:
        return Loss(LossKind.LEDGER_BEHIND, now + _CLOCK_MARGIN, total=True) if behind else None
    if facts.promoted:
        doubt_until = now + _CLOCK_MARGIN
        if facts.min_replicas:
            # A partitioned primary accepts writes for up to min-replicas-max-lag after the promotion.
            lag = timedelta(seconds=facts.max_lag)  # guard: failover-lag
            doubt_until = max(doubt_until, (reached_at or now) + lag + _CLOCK_MARGIN)
        return _after_failover(facts, doubt_until, known=shadow.gen == gen, behind=behind, lost_at=lost_at)
    # Redis counts its uptime by the wall clock, which may step. The previous process ran until the contact was lost.
    floor = max(facts.started_at, lost_at or facts.started_at)
    floor += _CLOCK_MARGIN  # guard: loss-clock-ahead
    if behind:
        return Loss(LossKind.RESTARTED_BEHIND, floor, total=True)
    if not facts.append_only:  # guard: loss-no-append-only
        # No shadow is certainly complete: a standby's shadow lags, and a former leader may not have been the last one.
        return Loss(LossKind.RESTARTED_WITHOUT_AOF, floor, total=True)
    if lost_at is None:
        return None
    return Loss(LossKind.RESTARTED, lost_at, total=False)


def with_unfinished(loss: Loss | None, unfinished: str, now: datetime) -> Loss:
    """Combine a loss with the note of a leader that did not finish its recovery, and so dispatched nothing."""
    try:
        micros, total = unfinished.split(" ")
        found = Loss(LossKind.UNFINISHED, from_micros(int(micros)), total == "1")
    except (ValueError, OverflowError):
        found = Loss(LossKind.UNFINISHED_UNREADABLE, now + _CLOCK_MARGIN, total=True)
    if loss is None:
        return found
    return Loss(loss.kind, max(loss.floor, found.floor), loss.total or found.total)


def _after_failover(
    facts: ServerFacts, doubt_until: datetime, *, known: bool, behind: bool, lost_at: datetime | None
) -> Loss:
    """Return the loss after a failover. This server may lack writes that the old primary has accepted until now."""
    if behind:
        return Loss(LossKind.FAILED_OVER_BEHIND, doubt_until, total=True)
    if not known or lost_at is None:  # guard: failover-no-witness
        return Loss(LossKind.FAILED_OVER_UNKNOWN, doubt_until, total=True)
    # Without min-replicas-to-write, the old primary never stops, and there is no promise for that case.
    floor = doubt_until if facts.min_replicas else lost_at  # guard: failover-old-primary
    if not facts.append_only:
        # A primary with replicas that restarts from a snapshot looks like a promoted replica.
        floor = max(floor, facts.started_at + _CLOCK_MARGIN)  # guard: failover-or-restart
    return Loss(LossKind.FAILED_OVER, floor, total=False)
