"""Newest records of the journal, kept in memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable

from ha_beat.monitoring.status.snapshot import TermSpan, spans
from ha_beat.store.journal import UNREADABLE, Journal, Record, TermRecord, VerdictRecord
from ha_beat.store.membership import ClusterView

_RECENT = 300
_TERMS = 100
_UNREADABLE = 20

#: Pages of the journal read in one poll. If there are more, the follower skips to the end.
_PAGES = 4
_PAGE = 500


class JournalFollower:
    """Reader of new journal records. Every method that reads raises ``StoreUnavailable`` if Redis does not answer."""

    def __init__(self, journal: Journal, stopping: Callable[[], bool]) -> None:
        """``stopping`` returns True if the reading of a long journal must end early."""
        self._journal = journal
        self._stopping = stopping
        self._last_id = ""
        self._gen = ""
        #: Ids of the newest records that cannot be read.
        self.unreadable: deque[str] = deque(maxlen=_UNREADABLE)
        self._recent: deque[VerdictRecord] = deque(maxlen=_RECENT)
        self._terms: deque[TermRecord] = deque(maxlen=_TERMS)
        #: Time of the last verdict by epoch, by the Redis server's clock.
        self._last_verdicts: dict[int, int] = {}

    def recent(self) -> tuple[VerdictRecord, ...]:
        """Return the newest verdicts, oldest first."""
        return tuple(self._recent)

    def terms(self, view: ClusterView) -> tuple[TermSpan, ...]:
        """Return the newest terms, oldest first."""
        return spans(self._terms, view.lease, self._last_verdicts)

    def follow(self, view: ClusterView) -> None:
        """Read the records that are new since the last call."""
        if not self._last_id:
            self._read_back()
        if view.gen != self._gen:
            # Another or an emptied Redis, whose clock may be behind. The records in memory are kept.
            self._gen = view.gen
            newest = self._journal.newest(1)
            if newest and _order(newest[0].id) < _order(self._last_id):
                self._last_id = "0"
        for _ in range(_PAGES):
            records = self._journal.after(self._last_id or "0")
            self._add(records)
            if len(records) < _PAGE:
                return
        self._add(reversed(self._journal.newest(_RECENT)))

    def _read_back(self) -> None:
        terms: list[TermRecord] = []
        verdicts: list[VerdictRecord] = []
        newest = ""
        for record in self._journal.between():
            newest = newest or record.id
            if isinstance(record, TermRecord):
                terms.append(record)
            elif isinstance(record, VerdictRecord):
                self._note_verdict(record)
                if len(verdicts) < _RECENT:
                    verdicts.append(record)
            elif record.kind == UNREADABLE and len(self.unreadable) < _UNREADABLE:
                self.unreadable.append(record.id)
            if len(terms) >= _TERMS or self._stopping():
                break
        self._terms.extend(reversed(terms))
        self._recent.extend(reversed(verdicts))
        self._last_id = newest

    def _add(self, records: Iterable[Record]) -> None:
        for record in records:
            if self._last_id not in {"", "0"} and _order(record.id) <= _order(self._last_id):
                continue
            self._last_id = record.id
            if isinstance(record, TermRecord):
                self._terms.append(record)
            elif isinstance(record, VerdictRecord):
                self._recent.append(record)
                self._note_verdict(record)
            elif record.kind == UNREADABLE:
                self.unreadable.append(record.id)

    def _note_verdict(self, record: VerdictRecord) -> None:
        self._last_verdicts[record.epoch] = max(self._last_verdicts.get(record.epoch, 0), _order(record.id)[0])
        if len(self._last_verdicts) > 2 * _TERMS:
            del self._last_verdicts[min(self._last_verdicts)]


def _order(stream_id: str) -> tuple[int, int]:
    milliseconds, _, number = stream_id.partition("-")
    return int(milliseconds or 0), int(number or 0)
