"""Reconciliation of the schedule with the ledger: the position of each entry, and the rows to write first.

It changes nothing: the entries are immutable, and the result holds new states and the operations to submit.

An entry starts at the latest position that the ledger, the shadow and its store know. Then (:func:`_place`):

- Known and unchanged: it stays there. Its row is written only if the ledger is behind.
- New: no instant before its start is due. A single instant is due even if it was saved shortly after it.
- Edited: no instant before the edit is due.
- Disabled and enabled again: no instant before now is due, or before the edit if it was edited, too.
- Disabled while there was no leader: only the newest instant is due, if it is not later than usual.
- In doubt after a loss of state: the instants up to the loss's floor are skipped, unless the leader catches up.

An instant that the row names as due and that the present schedule lacks is recorded as skipped. ``EntryState.owed`` is
an instant that is due although the position is past it: a single instant that was moved to the past, or an entry that a
program has asked to run now.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import cast

from ha_beat.events import EntryFailed
from ha_beat.leader.entry import EntryState, ScheduledEntry
from ha_beat.leader.ledger_writer import EntryOperation, LedgerWriter
from ha_beat.leader.loading.absent_rows import is_forgettable
from ha_beat.leader.loading.state_loss import Loss
from ha_beat.leader.planner import Absence
from ha_beat.reasons import EntryFault, SkipReason, Verdict
from ha_beat.schedule.misfire import MisfireRules, Skipped, newest_due, skip_all
from ha_beat.schedule.occurrence import FOREVER, NEVER
from ha_beat.schedule.recurrence import only_instant, origin
from ha_beat.store.ledger import LedgerRow
from ha_beat.store.shadow import Shadow

#: Tolerated difference between replicas' clocks. A stored last run that is further ahead is ignored.
_CLOCK_TOLERANCE = timedelta(seconds=2)

_INSTANT = timedelta(microseconds=1)

#: An entry is reported if its position is further ahead than this, because it stays idle until then.
_FAR_AHEAD = timedelta(seconds=30)


@dataclass(slots=True)
class Reconciled:
    """Outcome of :func:`reconcile`: the states of the entries and the operations that bring the ledger up to date.

    ``new`` is how many entries are not in the ledger. ``awaits_read``: some entries wait until the schedule is read
    under this term. ``ahead``: states far ahead of the clock.
    """

    states: list[EntryState] = field(default_factory=list)
    operations: list[EntryOperation] = field(default_factory=list)
    failures: list[EntryFailed] = field(default_factory=list)
    ahead: list[EntryState] = field(default_factory=list)
    new: int = 0
    awaits_read: bool = False


def reconcile(
    entries: Iterable[ScheduledEntry],
    rows: Mapping[str, str],
    shadow: Shadow,
    loss: Loss | None,
    *,
    writer: LedgerWriter,
    catch_up: bool,
    absence: Absence | None = None,
    cluster_ran: bool | None = None,
) -> Reconciled:
    """Place each entry at the latest of its store's, the ledger's and the shadow's position.

    After a loss, occurrences up to its floor are skipped unless ``catch_up``. ``entries`` and ``rows`` are those of the
    whole schedule or of some ids. ``cluster_ran`` is False if the whole ledger is empty; by default ``rows`` decide.
    """
    ran = bool(rows) if cluster_ran is None else cluster_ran
    facts = _Facts(shadow, loss, writer, catch_up, absence, ran)
    done, present = Reconciled(), set[str]()
    for entry in _distinct(entries, present, done.failures):
        _add(done, entry, rows.get(entry.id), facts)
    done.ahead = [state for state in done.states if state.position > writer.now + _FAR_AHEAD]
    if absence is not None:
        gone = rows.keys() - present
        if absence.certain:  # guard: absence-certain
            done.operations += absences({entry: rows[entry] for entry in gone}, shadow, loss, writer)
        done.awaits_read |= bool(gone) and not absence.certain
    if loss is not None:
        placed = {state.id for state in done.states} | {operation.state.id for operation in done.operations}
        done.operations += _restored(rows, placed, loss, facts)
    return done


@dataclass(frozen=True, slots=True)
class _Facts:
    """Facts by which every entry is placed."""

    shadow: Shadow
    loss: Loss | None
    writer: LedgerWriter
    catch_up: bool
    absence: Absence | None
    cluster_ran: bool


def _add(done: Reconciled, entry: ScheduledEntry, raw: str | None, facts: _Facts) -> None:
    """Add the state and the operation of one entry, or why it has none."""
    absence, writer = facts.absence, facts.writer
    row = LedgerRow.parse(raw) if raw is not None else None
    if raw is not None and row is None:
        done.failures.append(EntryFailed(entry.label, EntryFault.ROW_UNREADABLE))
        return
    if absence is not None and not absence.certain and _differs(entry, row):
        done.awaits_read = True
        return
    shadowed = facts.shadow.position(entry.id)
    # An entry has appeared while the cluster runs. A last run in its store is from before.
    appeared = absence is not None and row is None and facts.cluster_ran and shadowed is None
    try:
        state = _initial_state(entry, row, writer.now, appeared=appeared)
        operation = _place(state, shadowed, facts)
    except Exception as exc:
        done.failures.append(EntryFailed.raised(entry.label, EntryFault.SCHEDULE_RAISES, exc))
        return
    done.states.append(state)
    if operation is not None:
        done.operations.append(operation)
        done.new += row is None


def _distinct(
    entries: Iterable[ScheduledEntry], present: set[str], failures: list[EntryFailed]
) -> Iterator[ScheduledEntry]:
    """Yield the first entry of each id, because two would overwrite each other's row. Add the ids to ``present``."""
    for entry in entries:
        if entry.id in present:
            failures.append(EntryFailed(entry.label, EntryFault.DUPLICATE_ID, entry.id))
        else:
            present.add(entry.id)
            yield entry


def ahead_of_clock(ahead: Sequence[EntryState]) -> EntryFailed | None:
    """Return one report of all entries whose last run is in the future. They stay idle until then."""
    if not ahead:
        return None
    worst = max(ahead, key=lambda state: state.position)
    detail = f"until {worst.position.isoformat()}" + (f", {len(ahead)} entries in all" if len(ahead) > 1 else "")
    return EntryFailed(worst.label, EntryFault.AHEAD_OF_CLOCK, detail)


# --- Entries that are not in this replica's schedule


def unscheduled(entry_id: str, position: datetime, row: LedgerRow | None) -> EntryState:
    """Return the state of an entry that is known from the ledger or the shadow only."""
    entry = ScheduledEntry(entry_id, None, None, MisfireRules(), row.signature if row else "", position)
    return EntryState(entry, position, row)


def _restored(rows: Mapping[str, str], placed: Set[str], loss: Loss, facts: _Facts) -> list[EntryOperation]:
    """Restore the rows of entries that were lost or are in doubt, and that this replica's schedule may lack.

    A later leader that has such an entry finds no loss, so the row records until when the entry is in doubt. Without
    the row, each change of leader would find the ledger behind and report another loss.
    """
    operations, writer = [], facts.writer
    lost = facts.shadow.lost(rows, writer.now)
    for entry_id in (lost.keys() | rows.keys()) - placed:
        row = LedgerRow.parse(rows[entry_id]) if entry_id in rows else None
        if row is None and entry_id in rows:
            continue
        position = max(filter(None, (row.base if row else None, lost.get(entry_id))))
        state = unscheduled(entry_id, position, row)
        following = row.following if row is not None and entry_id not in lost else None
        if row is not None and row.verdict is Verdict.ABSENT:
            operations += [writer.mark_absent(state)] if entry_id in lost else []
        elif not facts.catch_up and position < loss.floor and (following is None or following <= loss.floor):
            operations.append(writer.arm(state, in_doubt_until=loss.floor))  # guard: in-doubt-of-others
        elif entry_id in lost:
            operations.append(writer.arm(state))
    return operations


def absences(rows: Mapping[str, str], shadow: Shadow, loss: Loss | None, writer: LedgerWriter) -> list[EntryOperation]:
    """Record deleted and disabled entries, and delete the rows of those that were recorded long ago."""
    operations = []
    for entry_id, raw in rows.items():
        row = LedgerRow.parse(raw)
        if row is None:
            continue
        state = unscheduled(entry_id, max(row.base, shadow.position(entry_id) or row.base), row)
        state.doubted_until = _doubted_until(row, loss)
        if row.verdict is not Verdict.ABSENT:
            operations.append(writer.mark_absent(state))
        elif is_forgettable(row, writer.now):
            operations.append(writer.delete(state, row))
    return operations


# --- Entries that are in it


def _differs(entry: ScheduledEntry, row: LedgerRow | None) -> bool:
    """True if this replica's entry differs from the last leader's, and may be older."""
    return row is not None and (row.verdict is Verdict.ABSENT or row.signature != entry.signature)


def _initial_state(entry: ScheduledEntry, row: LedgerRow | None, now: datetime, *, appeared: bool) -> EntryState:
    """Return the entry's state as its own store has it."""
    position = entry.last_run
    if position > now + _CLOCK_TOLERANCE:  # guard: base-in-future
        position = NEVER
    if appeared:
        position = max(position, _start(entry, min(entry.since or now, now)))
    resumed = entry.resumed and not _recorded_since(entry, row)  # guard: resumed-once
    return EntryState(entry, position, row, resumed)


def _recorded_since(entry: ScheduledEntry, row: LedgerRow | None) -> bool:
    """True if an earlier leader has recorded that the entry was disabled and enabled again."""
    if row is None or row.verdict is Verdict.ABSENT or entry.since is None:
        return False
    return row.dispatched_ms >= entry.since.timestamp() * 1000


def _place(state: EntryState, shadowed: datetime | None, facts: _Facts) -> EntryOperation | None:
    """Set the position of a new state. Return the operation that records it, or ``None`` if the row is up to date."""
    entry, row, writer = state.entry, state.row, facts.writer
    now = writer.now
    known = [position for position in (row.base if row else None, shadowed) if position is not None]
    behind = row is None or (shadowed is not None and shadowed > row.base)
    disabled = state.resumed or (row is not None and row.verdict is Verdict.ABSENT)  # guard: absent-counts-from-now
    changed = row is not None and row.signature != entry.signature
    edited = changed and not disabled
    # The position is never an instant in the future that has not run.
    since = min(entry.since or now, now)  # guard: position-not-ahead
    if not known and state.position == NEVER:
        state.position = _start(entry, since)
    state.position = reached = max([state.position, *known])
    if edited or disabled:  # guard: edited-counts-from-edit
        # No instant before the edit is owed, and none while the entry was disabled. After both, the edit counts.
        resumed = disabled and not changed  # guard: absent-and-changed
        start = origin(entry.recurrence, now) if resumed else _start(entry, since)
        state.position = max(state.position, start)
    state.owed = _owed(state, now, changed=changed, disabled=disabled)
    if not (edited or disabled) and _was_disabled(entry, row):  # guard: off-without-leader
        # The store may have been cleared without disabling the entry, so the usual lateness is still owed.
        state.position = _newest(state, now - timedelta(seconds=entry.misfire.usual_lateness))
    state.doubted_until = _doubted_until(row, facts.loss)
    in_doubt = _doubted_until(row, None if facts.catch_up else facts.loss)
    if in_doubt is not None:  # guard: edited-in-doubt
        skipping = _skip_to(state, in_doubt, writer)
        if skipping is not None:
            return skipping
    skipped = _drop_recorded(state, reached, now, since if changed else None)
    if skipped is not None:
        return writer.skip(state, skipped, state.position, last=skipped.first)
    moved = state.position > reached
    return writer.arm(state) if edited or disabled or behind or moved else None  # guard: start-recorded


def _owed(state: EntryState, now: datetime, *, changed: bool, disabled: bool) -> datetime | None:
    """Return the instant that an edit leaves due, although the position is past it or the recurrence lacks it."""
    row, only = state.row, only_instant(state.entry.recurrence)
    if changed and only is not None and only <= state.position:  # guard: moved-to-the-past
        return state.position + _INSTANT
    if changed and not disabled and _is_asked_to_run(state, now):
        return max(state.position + _INSTANT, now)
    if row is not None and row.owed is not None and not changed and not disabled and row.owed > state.position:
        return row.owed
    return None


def _is_asked_to_run(state: EntryState, now: datetime) -> bool:
    """True if the entry is overdue by the last run that a program has set, and not by its position."""
    asked, recurrence = state.entry.rescheduled, state.entry.recurrence
    if asked is None or recurrence is None or asked >= state.position:
        return False
    return recurrence.next_after(asked) <= min(state.position, now)


def _start(entry: ScheduledEntry, since: datetime) -> datetime:
    """Return the position of an entry that is new, or has its present schedule, since this time."""
    start, only = origin(entry.recurrence, since), only_instant(entry.recurrence)
    # A single instant is owed even if it was saved shortly after it.
    return start if only is None else min(start, only - _INSTANT)


def _doubted_until(row: LedgerRow | None, loss: Loss | None) -> datetime | None:
    """Return the time up to which occurrences may have been enqueued before a loss of state, or ``None``."""
    known = (row.in_doubt_until if row is not None else None, loss.floor if loss is not None else None)
    return max(filter(None, known), default=None)


def _drop_recorded(state: EntryState, reached: datetime, now: datetime, edited_at: datetime | None) -> Skipped | None:
    """Return what fell due after ``reached``, while there was no leader, and is not due any more.

    The row has one of these instants. The number of others is unknown.
    """
    row = state.row
    due = row.owed or row.following if row is not None else None
    if due is None or due <= reached or (state.entry.recurrence is not None and due == state.next_due()):
        return None
    if due <= now and state.position < due and state.entry.recurrence is not None and state.next_due() >= FOREVER:
        # By its present schedule, the entry ends before this instant.
        state.position = edited_at = due  # guard: end-drops-recorded
    until = max(state.position, edited_at or state.position)
    if due > until:  # guard: edit-drops-recorded
        return None
    reason = SkipReason.REMOVED if edited_at is None else SkipReason.EDITED
    return Skipped(due, until + _INSTANT, -1, reason)


def _was_disabled(entry: ScheduledEntry, row: LedgerRow | None) -> bool:
    """True if the entry was disabled since its last run, while there was no leader to record it."""
    ran = (
        row is not None
        and row.verdict in {Verdict.ENQUEUED, Verdict.UNCERTAIN}
        and row.run_count <= entry.run_count  # guard: stale-store
    )
    return entry.cleared and ran


def _newest(state: EntryState, until: datetime) -> datetime:
    """Return the newest instant up to ``until``, or the position if there is none."""
    recurrence = state.entry.recurrence
    if recurrence is None or (first := recurrence.next_after(state.position)) > until:
        return state.position
    return newest_due(recurrence, first, until, keep=1).newest


def _skip_to(state: EntryState, floor: datetime, writer: LedgerWriter) -> EntryOperation | None:
    """Skip the occurrences up to ``floor``, which may have been enqueued before the loss of state."""
    recurrence = state.entry.recurrence
    if state.position >= floor:  # guard: loss-floor
        return None
    if recurrence is None:
        state.position = floor
        return writer.arm(state)
    first = state.next_due()
    if first > floor:
        return None
    decision = skip_all(recurrence, newest_due(recurrence, first, floor, keep=1), SkipReason.STATE_LOSS)
    state.position = decision.position
    return writer.skip(state, cast("Skipped", decision.skipped), decision.position)
