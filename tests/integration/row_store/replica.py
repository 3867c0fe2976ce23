"""Reader and writer of one replica, for tests that do one turn of its threads at a time."""

from datetime import UTC, datetime
from itertools import count
from types import SimpleNamespace
from typing import Any

from ha_beat import events
from ha_beat.duties import Duties
from ha_beat.reasons import Duty, DutyFault, Verdict
from ha_beat.row_store.sync import RowSync
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow
from tests.support.clocks import SteppedClock
from tests.support.leases import term

_epochs = count(1)


class Replica:
    """Reader and writer with a settable term. Their threads do not run."""

    def __init__(self, rows: Any, *, leads: bool = True) -> None:
        """`rows` are the rows of a store, as in `conftest.Rows`."""
        self.term: Term | None = None
        self.events: list[events.Event] = []
        self.clock = SteppedClock()
        self.duties = Duties(self.clock, self.events.append)
        self.rows, self.store = rows, rows.store()
        runtime: Any = SimpleNamespace(
            duties=self.duties,
            elector=SimpleNamespace(handle=self),
            enqueuer=SimpleNamespace(now=lambda: datetime.now(UTC)),
            events=SimpleNamespace(emit=self.events.append),
        )
        self.sync = RowSync(
            self.store,
            runtime,
            rows.app,
            self.clock,
            make_entry=self.store.make_entry,
            begin_term=lambda _: None,
            has_all_verdicts=lambda _: True,
        )
        self.table, self.reader, self.writer = self.sync.table, self.sync.reading.reader, self.sync.writer
        self.turn()
        if leads:
            self.lead()

    def lead(self) -> None:
        number = next(_epochs)
        self.term = term(f"replica {number}", number)
        self.turn(2)

    def turn(self, times: int = 1) -> None:
        """Let each thread work. Raises what the threads would report."""
        for _ in range(times):
            self.sync.reading.work()
            try:
                self.sync.writing.work()
            finally:
                self.sync.reading.work()

    def ran(self, name: str, at: datetime, run_count: int) -> None:
        self.writer.queue_run(self.rows.id(name), LedgerRow(at, Verdict.ENQUEUED, run_count=run_count))

    def finished(self, *names: str) -> None:
        """Queue the disabling of these one-off rows."""
        for name in names:
            self.writer.disable_finished(self.entry(name))

    def entry(self, name: str) -> Any:
        return self.table.entries[self.rows.id(name)]

    @property
    def names(self) -> set[str]:
        return {entry.name for entry in self.table.entries.values()}

    def failed_entries(self) -> list[tuple[str, str]]:
        """Return name and fault of each entry that was reported."""
        return [(event.entry, event.reason) for event in self.events if isinstance(event, events.EntryFailed)]

    def late(self) -> dict[Duty, DutyFault]:
        return {duty: state.reason for duty, state in self.duties.late().items()}
