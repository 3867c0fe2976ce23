"""Schedule source for the rows of a store: connects the threads with the main loop."""

from __future__ import annotations

from collections.abc import Mapping, Set
from typing import Any

from ha_beat.beat_loop import Runtime
from ha_beat.leader.entry import ScheduledEntry
from ha_beat.reasons import Verdict
from ha_beat.row_store.backend import RowStore
from ha_beat.row_store.entry import RowEntry
from ha_beat.row_store.full_read import PAGE
from ha_beat.row_store.static_entries import write_static_entries
from ha_beat.row_store.sync import RowSync
from ha_beat.row_store.table import RowTable
from ha_beat.schedule_sources.stored_source import POLL_INTERVAL, StoredSource
from ha_beat.store.lease import Term
from ha_beat.store.ledger import LedgerRow


class RowSource(StoredSource):
    """Entries of the rows as last read by the threads of :mod:`ha_beat.row_store.sync`.

    It has more than 15 methods because the base class ``ReplicaSource`` has 16.
    """

    def __init__(self, scheduler: Any) -> None:
        super().__init__(scheduler)
        self._store: RowStore | None = None
        #: Removals that the ledger has not recorded, as in the table.
        self._removed: dict[str, int] = {}

    # --- Life cycle

    def start(self, runtime: Runtime) -> None:
        scheduler = self._scheduler
        self._store = scheduler.row_store()
        sync = RowSync(
            self._store,
            runtime,
            scheduler.app,
            self._clock,
            make_entry=self._make_entry,
            begin_term=self._begin_term,
            has_all_verdicts=self._has_all_verdicts,
            interval=min(POLL_INTERVAL, scheduler.max_interval or POLL_INTERVAL),
        )
        self._run(runtime, sync)

    def _make_entry(self, model: Any) -> RowEntry:
        entry: RowEntry = self._row_store.make_entry(model)
        entry.rules = self.rules.of(entry)
        return entry

    def _begin_term(self, term: Term) -> None:
        """Write the changed entries of the settings, and the runs that the previous leader could not write."""
        runtime, sync = self._running
        write_static_entries(self._scheduler.app, self._row_store, runtime, term, began_ms=self._began_ms)
        sync.writer.record_missing(runtime.ledger.pages(PAGE))

    @property
    def _row_store(self) -> RowStore:
        if self._store is None:
            raise RuntimeError("the schedule source has not been started")
        return self._store

    # --- Entries

    def _loading(self, ids: Set[str] | None) -> None:
        table: RowTable = self._running[1].table
        if ids is None:
            self._removed = {}
            removed = table.removed()
        else:
            removed = {entry_id: at for entry_id in ids if (at := table.removed_at(entry_id)) is not None}
        self._removed |= {entry_id: at for entry_id, at in removed.items() if at <= self._used[0]}

    def _details(self, entry: RowEntry) -> Mapping[str, Any]:
        return {
            "once": entry.once,
            "expires": entry.expires,
            "resumed": entry.id in self._removed,
            "cleared": entry.run_state[0] is None and entry.run_state[1] > 0,
        }

    def _has_all_verdicts(self, entry_id: str) -> bool:
        """True if the leader has loaded the rows as last read, and each due instant of this one has its verdict.

        The writing thread calls this.
        """
        runtime, sync = self._running
        term, enqueuer = runtime.elector.handle.term, runtime.enqueuer
        current = self._used[0] == sync.table.number
        loaded = term is not None and enqueuer.up_to_date(term) and not enqueuer.awaits_read
        return current and loaded and enqueuer.due_queue.get(entry_id) is None

    # --- One entry

    def armed(self, entry_id: str) -> None:
        number = self._removed.pop(entry_id, None)
        if number is not None:
            self._running[1].table.forget_removed(entry_id, number)

    def finished(self, entry: ScheduledEntry, runs: int) -> None:
        # As in the stores' own schedulers, a one-off row that has not run stays enabled until it expires: it may still
        # be edited.
        if entry.once and (runs or entry.celery_entry.expires is None):
            _, sync = self._running
            sync.writer.disable_finished(entry.celery_entry)
            sync.write_soon()

    def recorded(self, entry: ScheduledEntry, row: LedgerRow) -> None:
        row_entry: RowEntry = entry.celery_entry
        if row.verdict is not Verdict.SKIPPED and self.hooks.replaced("reserve"):
            self._scheduler.reserve(row_entry)
        row_entry.last_run_at, row_entry.total_run_count = row.base, row.run_count
        if not entry.once:
            # A one-off row is only disabled: its own task may have set its next run by the time of the write.
            self._running[1].writer.queue_run(entry.id, row)
