"""Ledger: one row for each entry, with its last occurrence and the verdict.

The ledger is a hash with a JSON row for each entry. A script replaces a row only if it finds the text that its caller
expects: of two writers that expect the same row, only one succeeds.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any

from ha_beat.clock import to_micros
from ha_beat.errors import StoreRefused
from ha_beat.reasons import TermEnd, Verdict
from ha_beat.store.keys import Keys
from ha_beat.store.lease import Term, fence_reason
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import Script, text, whole
from ha_beat.store.server_facts import ServerFacts, read_server_facts
from ha_beat.store.stored_values import MALFORMED, instant_in, ms_in, number_in, text_in

if TYPE_CHECKING:
    import redis

#: How long the ledger keeps the row of an entry that is deleted or disabled.
KEEP_ABSENT = timedelta(days=2)

#: Version of a row. A row with a higher version is not changed.
ROW_VERSION = 1

#: Verdicts that are never taken back.
_LASTING = frozenset(Verdict) - {Verdict.CLAIMED}

#: Stands in a decoded text for bytes that are no UTF-8, which a script cannot compare.
_NO_UTF8 = "\ufffd"


@dataclass(frozen=True, slots=True)
class LedgerRow:
    """Row of one entry.

    ``base`` is Celery's ``last_run_at``: the next occurrence is counted from it. ``scheduled_at`` is the due instant of
    the last occurrence, ``None`` if there was none. ``signature`` identifies the entry's schedule, and ``following`` is
    the next instant of that schedule. ``owed`` is an instant that the schedule does not have: an edit has moved the
    only one to ``base`` or before, or asks the entry to run now. Occurrences up to ``in_doubt_until`` may have been
    enqueued: state was lost, and the leader that recovered it did not have the entry. ``raw`` is the row in Redis.
    """

    base: datetime
    verdict: Verdict
    scheduled_at: datetime | None = None
    following: datetime | None = None
    owed: datetime | None = None
    in_doubt_until: datetime | None = None
    rev: int = 1
    dispatched_ms: int = 0
    epoch: int = 0
    nonce: str = ""
    run_count: int = 0
    reason: str = ""
    detail: str = ""
    task_id: str = ""
    signature: str = ""
    raw: str = ""

    def encoded(self) -> str:
        row: dict[str, Any] = {
            "v": ROW_VERSION,
            "rev": self.rev,
            "base": to_micros(self.base),
            "ms": self.dispatched_ms,
            "epoch": self.epoch,
            "by": self.nonce,
            "count": self.run_count,
            "verdict": self.verdict,
        }
        if self.scheduled_at is not None:
            row["at"] = to_micros(self.scheduled_at)
        if self.following is not None:
            row["next"] = to_micros(self.following)
        if self.owed is not None:
            row["owed"] = to_micros(self.owed)
        if self.in_doubt_until is not None:
            row["doubt"] = to_micros(self.in_doubt_until)
        if self.reason:
            row["why"] = self.reason
        if self.detail:
            row["detail"] = self.detail
        if self.task_id:
            row["id"] = self.task_id
        if self.signature:
            row["sig"] = self.signature
        return json.dumps(row, separators=(",", ":"))

    def with_raw(self) -> LedgerRow:
        """Add the text to this new row, to which nothing else refers yet, and return the row.

        A copy would take as long as the text.
        """
        object.__setattr__(self, "raw", self.encoded())
        return self

    @staticmethod
    def parse(raw: str) -> LedgerRow | None:
        """Return the row, or ``None`` if it is malformed or of a newer version."""
        return raw.row() if isinstance(raw, RawRow) else _parsed(raw)


class RawRow(str):
    """Row as stored in Redis. It is parsed at most once, although a takeover reads it several times."""

    __slots__ = ("_row",)
    _row: LedgerRow | None

    def row(self) -> LedgerRow | None:
        try:
            row = self._row
        except AttributeError:
            row = self._row = _parsed(str(self))
        return row


def _parsed(raw: str) -> LedgerRow | None:
    if _NO_UTF8 in raw:
        return None
    try:
        row = json.loads(raw)
        if row["v"] > ROW_VERSION:  # guard: ledger-newer-row
            return None
        at, following, owed, in_doubt = (row.get(key) for key in ("at", "next", "owed", "doubt"))
        return LedgerRow(
            base=instant_in(row["base"]),
            verdict=Verdict(row["verdict"]),
            scheduled_at=None if at is None else instant_in(at),
            following=None if following is None else instant_in(following),
            owed=None if owed is None else instant_in(owed),
            in_doubt_until=None if in_doubt is None else instant_in(in_doubt),
            rev=number_in(row["rev"]),
            dispatched_ms=ms_in(row["ms"]),
            epoch=number_in(row["epoch"]),
            nonce=text_in(row["by"]),
            run_count=number_in(row["count"]),
            reason=text_in(row.get("why", "")),
            detail=text_in(row.get("detail", "")),
            task_id=text_in(row.get("id", "")),
            signature=text_in(row.get("sig", "")),
            raw=raw,
        )
    except MALFORMED:
        return None


def position_in(raw: str) -> datetime | None:
    """Return the position of a row; ``None`` for a claim, which can be undone, and for an unreadable row.

    A standby reads every row after a burst, so the fields besides verdict and position are neither checked nor
    converted.
    """
    parsed: LedgerRow | None = getattr(raw, "_row", None)
    if parsed is not None:
        return None if parsed.verdict is Verdict.CLAIMED else parsed.base
    if _NO_UTF8 in raw:
        return None
    try:
        row = json.loads(raw)
        lasting = row["v"] <= ROW_VERSION and row["verdict"] in _LASTING
        return instant_in(row["base"]) if lasting else None
    except MALFORMED:
        return None


def _rows(found: Mapping[Any, Any]) -> Mapping[str, str]:
    """Return the rows of entries among the fields of the ledger."""
    rows = ((text(field), raw) for field, raw in found.items())
    return {field[2:]: RawRow(text(raw)) for field, raw in rows if field.startswith("e:")}


def _encodable(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


class Ledger:
    """Reader of the ledger's rows and writer of its notes. ``dispatch.lua`` and ``resolve_claims.lua`` write rows."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys) -> None:
        self._client = client
        self._keys = keys
        self._note = Script("note")
        self._note_recovery = Script("note_recovery")

    def server_facts(self, now: datetime) -> ServerFacts:
        """Return facts about the server. ``now`` is the scheduling time.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return read_server_facts(self._client(), now)

    def read(self) -> Mapping[str, str]:
        """Return the raw rows of all entries, by entry id.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        with mapped_redis_errors():
            found: Mapping[Any, Any] = self._client().hgetall(self._keys.ledger)
        return _rows(found)

    def read_some(self, entries: Iterable[str]) -> Mapping[str, str]:
        """Return the raw rows of these entries, by entry id.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return {entry: RawRow(raw) for entry, raw in self._fields("e", list(entries)).items()}

    def pages(self, size: int) -> Iterator[Mapping[str, str]]:
        """Yield the raw rows of all entries, about ``size`` at a time. Each page is read when it is requested.

        A row may come twice, and one that is written between two pages may be missing. Without the right to ``HSCAN``
        there is one page.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        cursor = 0
        while True:
            try:
                with mapped_redis_errors():
                    answer: Any = self._client().hscan(self._keys.ledger, cursor, count=size)
            except StoreRefused:
                yield self.read()
                return
            cursor = int(answer[0])
            yield _rows(answer[1])
            if cursor == 0:
                return

    def journal_counter(self) -> int:
        """Return the number of the journal's last record.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        with mapped_redis_errors():
            return whole(self._client().hget(self._keys.ledger, "m:journal"))

    def of(self, entries: Sequence[str]) -> Mapping[str, LedgerRow]:
        """Return the readable rows of these entries.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        found = self._fields("e", entries)
        return {entry: row for entry, raw in found.items() if (row := LedgerRow.parse(raw)) is not None}

    def notes(self, names: Sequence[str]) -> Mapping[str, str]:
        """Return the notes with these names.

        Raises:
            StoreUnavailable: Redis did not answer.
        """
        return self._fields("n", names)

    def _fields(self, kind: str, names: Sequence[str]) -> Mapping[str, str]:
        # Lone surrogates cannot be written either.
        names = [name for name in names if name.isascii() or _encodable(name)]
        if not names:
            return {}
        with mapped_redis_errors():
            found: Any = self._client().hmget(self._keys.ledger, [f"{kind}:{name}" for name in names])
        return {name: text(value) for name, value in zip(names, found, strict=True) if value is not None}

    def note_recovery(self, term: Term, unfinished: str = "") -> TermEnd | None:
        """Mark recovery complete, or store what remains for the next leader.

        Returns:
            Why the term is over (nothing was written), or ``None``.

        Raises:
            StoreUnavailable: the outcome is unknown; repeating the call is safe.
            StoreRefused: nothing was written.
        """
        keys = [self._keys.lease, self._keys.ledger]
        code = text(self._note_recovery(self._client(), keys, [term.epoch, term.nonce, term.run_id, unfinished]))
        return fence_reason(code) if code else None

    def write_notes(self, term: Term, notes: Mapping[str, str]) -> TermEnd | None:
        """Write notes as the leader.

        Returns:
            Why the term is over (nothing was written), or ``None``.

        Raises:
            StoreUnavailable: the outcome is unknown.
            StoreRefused: nothing was written.
        """
        flat = [part for pair in notes.items() for part in pair]
        keys = [self._keys.lease, self._keys.ledger]
        code = text(self._note(self._client(), keys, [term.epoch, term.nonce, *flat]))
        return fence_reason(code) if code else None
