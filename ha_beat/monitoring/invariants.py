"""Invariants of a running cluster, checked on its journal, lease and ledger.

:class:`Invariants` is pure. A violation means a bug in this package or lost data in Redis.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ha_beat import events
from ha_beat.monitoring.wording import instant
from ha_beat.reasons import Invariant
from ha_beat.store.journal import Journal, Record, TermRecord, VerdictRecord
from ha_beat.store.membership import ClusterView, Members

#: Seconds between two checks of a running cluster.
CHECK_INTERVAL = 5.0

#: Number of the newest occurrences in which a second verdict is found.
MEMORY = 5000


@dataclass(frozen=True, slots=True)
class Violation:
    """Broken invariant. ``subject`` is the entry, occurrence, lease or record that breaks it."""

    rule: Invariant
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class ClusterState:
    """Lease and ledger as read at one time; zero and empty if unknown.

    ``overdue`` has the seconds by which entries are overdue. It is ignored while the cluster is ``paused``.
    """

    lease_epoch: int = 0
    ledger_epoch: int = 0
    journal_counter: int = 0
    gen: str = ""
    overdue: tuple[tuple[str, float], ...] = ()
    paused: bool = False

    @classmethod
    def of(cls, view: ClusterView, overdue: tuple[tuple[str, float], ...] = ()) -> ClusterState:
        """Return the state in a view of the cluster."""
        epoch = view.lease.epoch if view.lease else 0
        return cls(epoch, view.highest_epoch, view.journal_counter, view.gen, overdue, bool(view.paused))


@dataclass(slots=True)
class Invariants:
    """Check of one cluster over time. A violation is emitted once, and again only after the invariant held in between.

    ``overdue_bound`` is the time in seconds after which a due entry must have been enqueued, skipped or reported.
    """

    emit: Callable[[events.Event], None]
    overdue_bound: float = 60.0
    #: Incarnation of the state as last seen.
    gen: str = ""
    _broken: dict[tuple[Invariant, str], Violation] = field(default_factory=dict)
    _enqueued: OrderedDict[tuple[str, str], VerdictRecord] = field(default_factory=OrderedDict)
    _highest_epoch: int = 0
    _highest_n: int = 0

    @property
    def violations(self) -> tuple[Violation, ...]:
        """Return the current violations. A second verdict stays until its occurrence leaves the memory."""
        return tuple(self._broken.values())

    def check(self, state: ClusterState, records: Iterable[Record] = ()) -> tuple[Violation, ...]:
        """Add the state and the new journal records, oldest first, and return the violations."""
        if self.gen and state.gen and state.gen != self.gen:
            # Redis lost its data, and the numbers start again. The leader reports the loss.
            self._highest_n = 0
        self.gen = state.gen or self.gen
        self._set(Invariant.EPOCH_FELL, "lease", self._epoch_fell(state))
        for record in records:
            self._highest_n = max(self._highest_n, record.n)
            if isinstance(record, TermRecord):
                self._add_term(record)
            elif isinstance(record, VerdictRecord):
                self._add_verdict(record)
        behind = 0 < state.journal_counter < self._highest_n
        detail = f"the ledger counts {state.journal_counter} records, the journal has number {self._highest_n}"
        self._set(Invariant.LEDGER_BEHIND_JOURNAL, "ledger", detail if behind else "")
        self._check_overdue(state)
        return self.violations

    def _epoch_fell(self, state: ClusterState) -> str:
        epoch = state.lease_epoch
        if epoch and epoch < self._highest_epoch:
            return f"the lease has epoch {epoch} after {self._highest_epoch}"
        if epoch and state.ledger_epoch > epoch:
            return f"the lease has epoch {epoch}, the ledger {state.ledger_epoch}"
        self._highest_epoch = max(self._highest_epoch, epoch)
        return ""

    def _add_term(self, record: TermRecord) -> None:
        if record.event != "acquired":
            return
        if record.epoch <= record.previous_epoch:
            detail = f"{record.by} acquired epoch {record.epoch} after epoch {record.previous_epoch}"
            self._set(Invariant.EPOCH_FELL, record.id, detail)
        self._highest_epoch = max(self._highest_epoch, record.epoch)

    def _add_verdict(self, record: VerdictRecord) -> None:
        if record.verdict != "enqueued" or record.kind == "manual":
            return
        key = (record.entry, instant(record.first))
        before = self._enqueued.get(key)
        if before is not None and before.id != record.id:
            detail = f"enqueued in epoch {before.epoch} by {before.by}, and in epoch {record.epoch} by {record.by}"
            self._set(Invariant.TWO_VERDICTS, " at ".join(key), detail)
        self._enqueued[key] = record
        if len(self._enqueued) > MEMORY:
            oldest, _ = self._enqueued.popitem(last=False)
            self._broken.pop((Invariant.TWO_VERDICTS, " at ".join(oldest)), None)

    def _check_overdue(self, state: ClusterState) -> None:
        late = {entry: seconds for entry, seconds in state.overdue if seconds > self.overdue_bound}
        if state.paused:
            late = {}
        for rule, entry in list(self._broken):
            if rule is Invariant.OVERDUE and entry not in late:
                del self._broken[rule, entry]
        for entry, seconds in late.items():
            self._set(Invariant.OVERDUE, entry, f"due for {seconds:.0f} s, and neither enqueued nor skipped")

    def _set(self, rule: Invariant, subject: str, detail: str) -> None:
        """Record a violation, or without a detail that the invariant holds."""
        if not detail:
            self._broken.pop((rule, subject), None)
        elif (rule, subject) not in self._broken:
            self._broken[rule, subject] = Violation(rule, subject, detail)
            self.emit(events.InvariantBroken(rule, subject, detail))


class InvariantChecker:
    """Reader of a running cluster that checks its invariants. Used by one thread."""

    def __init__(self, members: Members, journal: Journal, emit: Callable[[events.Event], None]) -> None:
        self._members = members
        self._journal = journal
        self._last_id = ""
        self._invariants = Invariants(emit)

    def check(self) -> tuple[Violation, ...]:
        """Read the new records, and return the violations.

        Raises:
            StoreError: Redis did not answer.
        """
        records = self._journal.after(self._last_id) if self._last_id else self._journal.newest()[::-1]
        # Read after the journal, so that the counter can't be behind the records.
        view = self._members.view()
        leader = view.leading_member
        overdue: tuple[tuple[str, float], ...] = ()
        if leader is not None and leader.upcoming and leader.overdue_ms:
            overdue = ((leader.upcoming[0].entry, leader.overdue_ms / 1000),)
        state = ClusterState.of(view, overdue)
        if self._invariants.gen and view.gen != self._invariants.gen:
            # Another or an emptied Redis, whose journal starts again, perhaps with an earlier clock.
            self._last_id = ""
            return self._invariants.check(state)
        if records:
            self._last_id = records[-1].id
        return self._invariants.check(state, records)
