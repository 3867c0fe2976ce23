"""Entries, rows and a shadow, and their reconciliation at one time. Positions are in seconds from now."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ha_beat.leader.entry import ScheduledEntry
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.reconcile import Reconciled, reconcile
from ha_beat.leader.loading.state_loss import Loss
from ha_beat.leader.planner import Absence
from ha_beat.reasons import LossKind, Verdict
from ha_beat.schedule.occurrence import NEVER
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.shadow import Shadow
from tests.support.entries import scheduled

NOW = datetime(2030, 1, 1, 12, tzinfo=UTC)
TERM = Term("we", epoch=7, nonce="ours", gen="g", run_id="r", trusted_until=0.0)
CERTAIN = Absence(certain=True)
UNREADABLE = '{"v": 99}'


def at(seconds: float) -> datetime:
    return NOW + timedelta(seconds=seconds)


def entry(last_run: datetime = NEVER, signature: str = "s", **changes: Any) -> ScheduledEntry:
    return scheduled(every=10, last_run=last_run, signature=signature, **changes)


def row(seconds: float, verdict: Verdict = Verdict.ENQUEUED, **changes: Any) -> str:
    """Return a row that was written at its position, after 4 runs."""
    ms = round(at(seconds).timestamp() * 1000)
    made = LedgerRow(at(seconds), verdict, at(seconds), rev=3, signature="s", run_count=4, dispatched_ms=ms)
    return replace(made, **changes).encoded()


def absent(seconds: float) -> str:
    return row(seconds, Verdict.ABSENT)


def shadow(**positions: float) -> Shadow:
    made = Shadow()
    for name, seconds in positions.items():
        made.learn(name, at(seconds))
    return made


def total(floor: float) -> Loss:
    return Loss(LossKind.LEDGER_LOST, at(floor), total=True)


def place(*entries: ScheduledEntry, rows: dict[str, str] | None = None, **changes: Any) -> Reconciled:
    given: dict[str, Any] = {"shadow": Shadow(), "loss": None, "catch_up": False, "writer": LedgerWriter(TERM, NOW)}
    return reconcile(entries, rows or {}, **{**given, **changes})


def place_one(one: ScheduledEntry, raw: str | None = None, **changes: Any) -> tuple[datetime, EntryOperation | None]:
    """Return the position of an entry, and the operation that records it."""
    done = place(one, rows={} if raw is None else {"e": raw}, **changes)
    (state,) = done.states
    return state.position, done.operations[0] if done.operations else None
