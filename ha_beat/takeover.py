"""What a new leader makes of the ledger: where each entry stands, and what has to be written before work begins."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from ha_beat import events
from ha_beat.agenda import Slot
from ha_beat.ledger import LedgerRow
from ha_beat.occurrence import Skipped, newest_due
from ha_beat.state_loss import Loss, Shadow
from ha_beat.verdicts import NEVER, Scribe, Work


@dataclass(slots=True)
class Takeover:
    """``slots`` with their positions, and the ``works`` that bring the ledger to where they are."""

    slots: list[Slot] = field(default_factory=list)
    works: list[Work] = field(default_factory=list)
    new: int = 0


def take_over(
    slots: Iterable[Slot],
    rows: Mapping[str, str],
    shadow: Shadow,
    loss: Loss | None,
    *,
    scribe: Scribe,
    catch_up: bool,
    emit: Callable[[events.Event], None],
) -> Takeover:
    """Place every entry: from the later of its own store, the ledger and the shadow; past the floor after a loss."""
    taken = Takeover()
    for slot in slots:
        raw = rows.get(slot.id)
        row = LedgerRow.parse(raw) if raw is not None else None
        if raw is not None and row is None:
            emit(events.EntryFailed(slot.id, "its ledger row is not of this version; left alone"))
            continue
        slot.row = row
        taken.slots.append(slot)
        work = _place(slot, row, shadow.position(slot.id), loss, scribe, catch_up=catch_up)
        if work is not None:
            taken.works.append(work)
            taken.new += row is None
    return taken


def _place(
    slot: Slot, row: LedgerRow | None, shadowed: datetime | None, loss: Loss | None, scribe: Scribe, *, catch_up: bool
) -> Work | None:
    now = scribe.now
    known = [base for base in (row.base if row else None, shadowed) if base is not None]
    edited = row is not None and row.signature != slot.signature
    behind = row is None or (bool(known) and max(known) > row.base)
    if not known and slot.base == NEVER:
        slot.base = now
    slot.base = max(slot.base, *known) if known else slot.base
    if edited:
        # An edited entry does not owe the instants of its new schedule before the edit.
        slot.base = max(slot.base, now)
    if loss is not None and not catch_up and not edited:
        skipping = _skip_to(slot, loss, scribe)
        if skipping is not None:
            return skipping
    return scribe.armed(slot) if edited or behind else None


def _skip_to(slot: Slot, loss: Loss, scribe: Scribe) -> Work | None:
    """Give what may have been enqueued before the loss the verdict that it won't be again."""
    if slot.base >= loss.floor:
        return None
    if slot.instants is None:
        slot.base = loss.floor
        return scribe.armed(slot)
    first = slot.instants.next_after(slot.base)
    if first > loss.floor:
        return None
    kept, count = newest_due(slot.instants, first, loss.floor, keep=1)
    slot.base = kept[-1]
    until = slot.instants.next_after(slot.base)
    return scribe.skipped(slot, Skipped(first, until, count, "state_loss"), slot.base)
