"""What a new leader makes of the ledger: where each entry stands, and what has to be written before work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Set
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from ha_beat import events
from ha_beat.leader.due_queue import Slot
from ha_beat.leader.ledger_writer import Scribe, Work
from ha_beat.leader.state_loss import Loss
from ha_beat.reasons import EntryFault, SkipReason, Verdict
from ha_beat.schedule.misfire import MisfireRules, Skipped, newest_due
from ha_beat.schedule.occurrence import NEVER
from ha_beat.schedule.recurrence import origin
from ha_beat.store.ledger import KEEP_ABSENT, LedgerRow
from ha_beat.store.shadow import Shadow

#: The clocks of replicas may differ by so much: a run that an entry's own store dates later than that is not believed.
_CLOCK_ROOM = timedelta(seconds=2)

_INSTANT = timedelta(microseconds=1)

#: A position of the ledger that lies ahead by more than this silences its entry for a time that somebody would notice.
_FAR_AHEAD = timedelta(seconds=30)


@dataclass(frozen=True, slots=True)
class Absence:
    """The schedule's store can tell that an entry is gone. ``certain``: it has been asked under this term."""

    certain: bool


@dataclass(slots=True)
class Takeover:
    """``slots`` with their positions, and the ``works`` that bring the ledger to where they are.

    ``held_back``: something was left alone until the schedule has been read under this term.
    """

    slots: list[Slot] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    new: int = 0
    held_back: bool = False


def take_over(
    slots: Iterable[Slot],
    rows: Mapping[str, str],
    shadow: Shadow,
    loss: Loss | None,
    *,
    scribe: Scribe,
    catch_up: bool,
    emit: Callable[[events.Event], None],
    absence: Absence | None = None,
) -> Takeover:
    """Place every entry: from the later of its own store, the ledger and the shadow; past the floor after a loss."""
    taken = Takeover()
    present: set[str] = set()
    ahead: list[Slot] = []
    for slot in _distinct(slots, present, emit):
        if slot.base > scribe.now + _CLOCK_ROOM:  # guard: base-in-future
            slot.base = NEVER
        raw = rows.get(slot.id)
        row = LedgerRow.parse(raw) if raw is not None else None
        if raw is not None and row is None:
            emit(events.EntryFailed(slot.label, EntryFault.ROW_UNREADABLE))
            continue
        slot.row = row
        slot.resumed = slot.resumed and not _dealt_with(slot, row)  # guard: resumed-once
        if absence is not None and not absence.certain and _needs_certainty(slot, row):
            taken.held_back = True
            continue
        if absence is not None and row is None and rows and shadow.position(slot.id) is None:
            # It has appeared: where the cluster began to work before, no run that its row tells of is the last.
            slot.base = max(slot.base, origin(slot.instants, slot.since or scribe.now))
        try:
            work = _place(slot, row, shadow.position(slot.id), loss, scribe, catch_up=catch_up)
        except Exception as exc:
            emit(events.EntryFailed.raised(slot.label, EntryFault.SCHEDULE_RAISES, exc))
            continue
        taken.slots.append(slot)
        if slot.base > scribe.now + _FAR_AHEAD:
            ahead.append(slot)
        if work is not None:
            taken.works.append(work)
            taken.new += row is None
    if ahead:
        _tell_of_silence(ahead, emit)
    if absence is not None:
        gone = rows.keys() - present
        if absence.certain:  # guard: absence-certain
            taken.works += _absences({entry: rows[entry] for entry in gone}, shadow, scribe)
        taken.held_back |= bool(gone) and not absence.certain
    if loss is not None:
        placed = {slot.id for slot in taken.slots} | {work.slot.id for work in taken.works}
        taken.works += _of_others(shadow, rows, placed, loss, scribe, catch_up=catch_up)
    return taken


def _distinct(slots: Iterable[Slot], present: set[str], emit: Callable[[events.Event], None]) -> Iterator[Slot]:
    """Of slots with one id only the first: they would undo each other's row. Adds the ids to those present."""
    for slot in slots:
        if slot.id in present:
            emit(events.EntryFailed(slot.label, EntryFault.DUPLICATE_ID, slot.id))
        else:
            present.add(slot.id)
            yield slot


def _tell_of_silence(ahead: list[Slot], emit: Callable[[events.Event], None]) -> None:
    """The time was wrong when they ran, and has been put right: rather silence than a second message."""
    worst = max(ahead, key=lambda slot: slot.base)
    detail = f"until {worst.base.isoformat()}" + (f", {len(ahead)} entries in all" if len(ahead) > 1 else "")
    emit(events.EntryFailed(worst.label, EntryFault.AHEAD_OF_CLOCK, detail))


def _of_others(
    shadow: Shadow, rows: Mapping[str, str], placed: Set[str], loss: Loss, scribe: Scribe, *, catch_up: bool
) -> list[Work]:
    """What was lost, or is in doubt, of entries that this replica's schedule has not, or not surely.

    Whoever has them leads later, and finds no loss: the row tells him until when they are in doubt. And a ledger that
    stayed behind would look like another loss at every takeover.
    """
    works = []
    lost = shadow.lost(rows, scribe.now)
    for entry in (lost.keys() | rows.keys()) - placed:
        row = LedgerRow.parse(rows[entry]) if entry in rows else None
        if row is None and entry in rows:
            continue
        base = max(filter(None, (row.base if row else None, lost.get(entry))))
        slot = Slot(entry, None, None, MisfireRules(), row.signature if row else "", base, row)
        following = row.following if row is not None and entry not in lost else None
        if row is not None and row.verdict is Verdict.ABSENT:
            works += [scribe.absent(slot)] if entry in lost else []
        elif not catch_up and base < loss.floor and (following is None or following <= loss.floor):
            works.append(scribe.armed(slot, in_doubt_until=loss.floor))  # guard: in-doubt-of-others
        elif entry in lost:
            works.append(scribe.armed(slot))
    return works


def _needs_certainty(slot: Slot, row: LedgerRow | None) -> bool:
    """What this replica knows of the entry differs from what the last leader knew, which may be the newer."""
    return row is not None and (row.verdict is Verdict.ABSENT or row.signature != slot.signature)


def _dealt_with(slot: Slot, row: LedgerRow | None) -> bool:
    """That the entry was off and is on again, this replica may have seen when another led, who has written it since."""
    if row is None or row.verdict is Verdict.ABSENT or slot.since is None:
        return False
    return row.dispatched_ms >= slot.since.timestamp() * 1000


def _absences(rows: Mapping[str, str], shadow: Shadow, scribe: Scribe) -> list[Work]:
    """Record what is gone; take out what has been gone for long."""
    works = []
    forget_before = scribe.now - KEEP_ABSENT - timedelta(hours=1)
    for entry, raw in rows.items():
        row = LedgerRow.parse(raw)
        if row is None:
            continue
        base = max(row.base, shadow.position(entry) or row.base)
        slot = Slot(entry, None, None, MisfireRules(), row.signature, base, row)
        if row.verdict is not Verdict.ABSENT:
            works.append(scribe.absent(slot))
        elif row.dispatched_ms < forget_before.timestamp() * 1000:  # guard: absence-remembered
            works.append(scribe.forgotten(slot, row))
    return works


def _place(
    slot: Slot, row: LedgerRow | None, shadowed: datetime | None, loss: Loss | None, scribe: Scribe, *, catch_up: bool
) -> Work | None:
    now = scribe.now
    known = [base for base in (row.base if row else None, shadowed) if base is not None]
    off = slot.resumed or (row is not None and row.verdict is Verdict.ABSENT)  # guard: absent-counts-from-now
    changed = row is not None and row.signature != slot.signature
    edited = changed and not off
    behind = row is None or (bool(known) and max(known) > row.base)
    if not known and slot.base == NEVER:
        slot.base = slot.since or now
    slot.base = reached = max(slot.base, *known) if known else slot.base
    if edited or off:  # guard: edited-counts-from-edit
        # An edited entry does not owe the instants of its new schedule before the edit, nor one that was off any.
        # What was given another schedule meanwhile is not the old one that goes on: a time just past counts.
        since = slot.since
        if since is None or (
            off and not changed  # guard: absent-and-changed
        ):
            since = now
        slot.base = max(slot.base, origin(slot.instants, since))
    if not (edited or off) and _was_off(slot, row):  # guard: off-without-leader
        # What a change of leader may cost is owed all the same: the store may have been reset, and the entry never off.
        slot.base = _newest(slot, now - timedelta(seconds=slot.misfire.usual_lateness))
    in_doubt = [until for until in (loss.floor if loss and not catch_up else None, row and row.in_doubt_until) if until]
    if in_doubt:  # guard: edited-in-doubt
        skipping = _skip_to(slot, max(in_doubt), scribe)
        if skipping is not None:
            return skipping
    dropped = row.following if edited and row is not None else None
    if dropped is not None and reached < dropped <= slot.base:  # guard: edit-drops-recorded
        # Due by the old schedule, and nobody led: what else it owed until the edit only the release before knows.
        skipped = Skipped(dropped, slot.base + _INSTANT, -1, SkipReason.EDITED)
        return scribe.skipped(slot, skipped, slot.base, last=dropped)
    return scribe.armed(slot) if edited or off or behind or slot.base > reached else None  # guard: start-recorded


def _was_off(slot: Slot, row: LedgerRow | None) -> bool:
    """Whether it has been off since its last run though nobody led who would have written that down."""
    ran = (
        row is not None
        and row.verdict in {Verdict.ENQUEUED, Verdict.UNCERTAIN}
        and row.run_count <= slot.run_count  # guard: stale-store
    )
    return slot.cleared and ran


def _newest(slot: Slot, until: datetime) -> datetime:
    """The newest of its instants up to ``until``; where it stands if there is none."""
    if slot.instants is None or (first := slot.instants.next_after(slot.base)) > until:
        return slot.base
    return newest_due(slot.instants, first, until, keep=1)[0][-1]


def _skip_to(slot: Slot, floor: datetime, scribe: Scribe) -> Work | None:
    """Give what may have been enqueued before the loss the verdict that it won't be again."""
    if slot.base >= floor:  # guard: loss-floor
        return None
    if slot.instants is None:
        slot.base = floor
        return scribe.armed(slot)
    first = slot.instants.next_after(slot.base)
    if first > floor:
        return None
    kept, count = newest_due(slot.instants, first, floor, keep=1)
    slot.base = kept[-1]
    until = slot.instants.next_after(slot.base)
    return scribe.skipped(slot, Skipped(first, until, count, SkipReason.STATE_LOSS), slot.base)
