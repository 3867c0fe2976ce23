"""What must always hold, checked on a running cluster from what it has recorded.

The rules are pure: they take the newest journal records and the lease and the ledger as last read, and tell what is
broken. A breach means a fault in this software or lost state in Redis, not a busy day.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field

from ha_beat import events
from ha_beat.reasons import Invariant
from ha_beat.store.journal import Journal, Record, TermRecord, VerdictRecord
from ha_beat.store.membership import Members

#: Seconds between two looks at a running cluster.
PATROL_INTERVAL = 5.0

#: So many of the newest occurrences are remembered to find a second verdict for one of them.
MEMORY = 5000


@dataclass(frozen=True, slots=True)
class Breach:
    """A broken rule: its name, what broke it, and how it shows."""

    rule: Invariant
    subject: str
    detail: str


@dataclass(frozen=True, slots=True)
class Standing:
    """The lease and the ledger as one look found them. Zero and empty where unknown.

    ``overdue`` names entries that the leader has let wait, with by how many seconds; ``paused`` excuses that.
    """

    lease_epoch: int = 0
    ledger_epoch: int = 0
    journal_counter: int = 0
    gen: str = ""
    overdue: tuple[tuple[str, float], ...] = ()
    paused: bool = False


@dataclass(slots=True)
class Watch:
    """Follows one cluster, and tells of each breach once until it is mended.

    ``overdue_bound``, in seconds: later than that, an entry should have been enqueued, skipped or reported.
    """

    emit: Callable[[events.Event], None]
    overdue_bound: float = 60.0
    _broken: dict[tuple[Invariant, str], Breach] = field(default_factory=dict)
    _enqueued: OrderedDict[tuple[str, str], VerdictRecord] = field(default_factory=OrderedDict)
    _highest_epoch: int = 0
    _highest_n: int = 0
    _gen: str = ""

    @property
    def gen(self) -> str:
        """The incarnation of the state as last seen."""
        return self._gen

    @property
    def breaches(self) -> tuple[Breach, ...]:
        """What is broken now. An occurrence with two messages stays so until it is forgotten."""
        return tuple(self._broken.values())

    def look(self, standing: Standing, records: Iterable[Record] = ()) -> tuple[Breach, ...]:
        """Take in what was read, the records oldest first and each once, and tell what is broken."""
        lost = bool(self._gen and standing.gen and standing.gen != self._gen)
        self._gen = standing.gen or self._gen
        if lost:
            # The state was lost and made anew: numbers begin again. The loss itself is told by the leader.
            self._highest_n = 0
        self._check(Invariant.EPOCH_FELL, "lease", self._fallen(standing))
        for record in records:
            self._highest_n = max(self._highest_n, record.n)
            if isinstance(record, TermRecord):
                self._take_term(record)
            elif isinstance(record, VerdictRecord):
                self._take_verdict(record)
        behind = 0 < standing.journal_counter < self._highest_n
        self._check(
            Invariant.LEDGER_BEHIND_JOURNAL,
            "ledger",
            f"the ledger counts {standing.journal_counter} records, the journal has number {self._highest_n}"
            if behind
            else "",
        )
        self._look_at_overdue(standing)
        return self.breaches

    def _fallen(self, standing: Standing) -> str:
        epoch = standing.lease_epoch
        if epoch and epoch < self._highest_epoch:
            return f"the lease bears epoch {epoch} after {self._highest_epoch} was seen"
        if epoch and standing.ledger_epoch > epoch:
            return f"the lease bears epoch {epoch}, the ledger {standing.ledger_epoch}"
        self._highest_epoch = max(self._highest_epoch, epoch)
        return ""

    def _take_term(self, record: TermRecord) -> None:
        if record.event != "acquired":
            return
        if record.epoch <= record.previous_epoch:
            detail = f"{record.by} took over epoch {record.previous_epoch} with epoch {record.epoch}"
            self._check(Invariant.EPOCH_FELL, record.id, detail)
        self._highest_epoch = max(self._highest_epoch, record.epoch)

    def _take_verdict(self, record: VerdictRecord) -> None:
        if record.verdict != "enqueued" or record.kind == "manual":
            return
        key = (record.entry, record.first.isoformat())
        before = self._enqueued.get(key)
        if before is not None and before.id != record.id:
            detail = f"enqueued in epoch {before.epoch} by {before.by}, and in epoch {record.epoch} by {record.by}"
            self._check(Invariant.TWO_VERDICTS, f"{key[0]} at {key[1]}", detail)
        self._enqueued[key] = record
        if len(self._enqueued) > MEMORY:
            (entry, at), _ = self._enqueued.popitem(last=False)
            self._broken.pop((Invariant.TWO_VERDICTS, f"{entry} at {at}"), None)

    def _look_at_overdue(self, standing: Standing) -> None:
        late = {entry: seconds for entry, seconds in standing.overdue if seconds > self.overdue_bound}
        if standing.paused:
            late = {}
        for rule, entry in list(self._broken):
            if rule == Invariant.OVERDUE and entry not in late:
                del self._broken[rule, entry]
        for entry, seconds in late.items():
            self._check(Invariant.OVERDUE, entry, f"due for {seconds:.0f} s, and neither enqueued nor skipped")

    def _check(self, rule: Invariant, subject: str, detail: str) -> None:
        """Broken where there is a detail, mended where there is none."""
        if not detail:
            self._broken.pop((rule, subject), None)
        elif (rule, subject) not in self._broken:
            self._broken[rule, subject] = Breach(rule, subject, detail)
            self.emit(events.InvariantBroken(rule, subject, detail))


class Patrol:
    """Looks after the rules on a running cluster. Used by one thread."""

    def __init__(self, members: Members, journal: Journal, emit: Callable[[events.Event], None]) -> None:
        self._members = members
        self._journal = journal
        self._seen = ""
        self.watch = Watch(emit)

    def turn(self) -> tuple[Breach, ...]:
        """Take in what is new, and tell what is broken.

        Raises:
            StoreError: Redis did not answer.
        """
        records = self._journal.after(self._seen) if self._seen else self._journal.newest()[::-1]
        # Read after the journal, the counter can't be behind it.
        view = self._members.view()
        leader = next((member for member in view.members if member.role == "leader"), None)
        overdue: tuple[tuple[str, float], ...] = ()
        if leader is not None and leader.upcoming and leader.overdue_ms:
            overdue = ((leader.upcoming[0].entry, leader.overdue_ms / 1000),)
        standing = Standing(
            lease_epoch=view.lease.epoch if view.lease else 0,
            ledger_epoch=view.highest_epoch,
            journal_counter=view.journal_counter,
            gen=view.gen,
            overdue=overdue,
            paused=bool(view.paused),
        )
        if self.watch.gen and view.gen != self.watch.gen:
            # Another Redis, or an emptied one: its journal begins anew, perhaps with an earlier clock.
            self._seen = ""
            return self.watch.look(standing)
        if records:
            self._seen = records[-1].id
        return self.watch.look(standing, records)
