"""Reader of the journal, which records the verdict of every occurrence and every change of leader.

The journal is a Redis stream. Each record is written by the script that makes the change. The records are numbered by
one counter, so a gap in their numbers ``n`` shows trimmed or lost records.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any, cast

from ha_beat.clock import to_ms
from ha_beat.reasons import TermEnd, TermStart, Verdict, parse_code
from ha_beat.store.keys import Keys
from ha_beat.store.redis_errors import mapped_redis_errors
from ha_beat.store.scripts import text, whole
from ha_beat.store.stored_values import MALFORMED, iso_instant_in, ms_in, number_in, text_in

if TYPE_CHECKING:
    import redis

#: Records that are read by one command.
_PAGE = 500

#: Kind of a record that cannot be read.
UNREADABLE = "unreadable"


@dataclass(frozen=True, slots=True)
class Record:
    """Record of any kind.

    ``id`` is the stream's, and ``n`` the counter's number or 0. ``kind`` is ``occurrence``, ``term``, ``control`` or
    another. ``ms`` is the time of writing in ms since the Unix epoch, ``by`` the leader, ``data`` the whole record.
    """

    id: str
    n: int
    kind: str
    ms: int
    epoch: int
    by: str
    data: Mapping[str, Any] = field(repr=False)

    @property
    def written_at(self) -> datetime:
        return datetime.fromtimestamp(self.ms / 1000, UTC)


@dataclass(frozen=True, slots=True)
class VerdictRecord(Record):
    """Verdict of one occurrence, or of all from ``first`` to before ``until``. ``count`` is -1 if it is unknown."""

    verdict: Verdict
    entry: str
    first: datetime
    until: datetime
    count: int
    reason: str = ""
    detail: str = ""
    task_id: str = ""

    @property
    def label(self) -> str:
        """Return the name of the entry. For a row of a database, ``entry`` is its primary key."""
        return text_in(self.data.get("name")) or self.entry

    @property
    def asked_by(self) -> str:
        """Return the caller of a manual run or a backfill, ``""`` for an occurrence of the schedule."""
        return text_in(self.data.get("asked_by"))

    @property
    def lateness(self) -> float:
        """Return the seconds from the due instant to the verdict."""
        return self.ms / 1000 - self.first.timestamp()


@dataclass(frozen=True, slots=True)
class TermRecord(Record):
    """Change of leader. ``event`` is ``acquired`` or ``released``; ``reason`` is ``None`` for an unknown code.

    An acquisition has the previous holder, its epoch and the time of its last renewal, ``left_ms``.
    """

    event: str
    reason: TermStart | TermEnd | None = None
    detail: str = ""
    previous: str = ""
    previous_epoch: int = 0
    left_ms: int = 0


def parse(stream_id: str, n: int, raw: str) -> Record:
    """Return a record. One that cannot be read, or is of an unknown kind, is a plain :class:`Record`."""
    try:
        data = json.loads(raw)
        kind = text_in(data.get("kind") or ("occurrence" if "verdict" in data else "other"))
        known: dict[str, Any] = {
            "id": stream_id,
            "n": n,
            "kind": kind,
            "ms": ms_in(data.get("ms") or stream_id.partition("-")[0]),
            "epoch": number_in(data.get("epoch") or 0),
            "by": text_in(data.get("by")),
            "data": data,
        }
        if kind == "term":
            return TermRecord(
                **known,
                event=text_in(data["event"]),
                reason=_term_reason(data),
                detail=text_in(data.get("detail")),
                previous=text_in(data.get("previous")),
                previous_epoch=number_in(data.get("previous_epoch") or 0),
                left_ms=ms_in(data.get("left_ms") or 0),
            )
        if "verdict" in data and "entry" in data and ("at" in data or "from" in data):
            first = iso_instant_in(data.get("at") or data["from"])
            until = iso_instant_in(data["until"]) if "until" in data else first + timedelta(microseconds=1)
            return VerdictRecord(
                **known,
                verdict=Verdict(data["verdict"]),
                entry=text_in(data["entry"]),
                first=first,
                until=until,
                count=number_in(data.get("count", 1), -1),
                reason=text_in(data.get("why")),
                detail=text_in(data.get("detail")),
                task_id=text_in(data.get("id")),
            )
        return Record(**known)
    except MALFORMED:
        return Record(stream_id, n, UNREADABLE, whole(stream_id.partition("-")[0]), 0, "", {})


def _term_reason(data: Mapping[str, Any]) -> TermStart | TermEnd | None:
    code = str(data.get("reason"))
    return parse_code(TermStart, code) if data["event"] == "acquired" else parse_code(TermEnd, code)


class Journal:
    """Journal of one cluster. Every method raises ``StoreError`` if Redis fails."""

    def __init__(self, client: Callable[[], redis.Redis], keys: Keys) -> None:
        self._client = client
        self._keys = keys

    def newest(self, limit: int = 100) -> list[Record]:
        """Return the newest records, newest first."""
        return _records(self._read("XREVRANGE", "+", "-", limit))

    def after(self, stream_id: str, limit: int = _PAGE) -> list[Record]:
        """Return the records after one, in order. The id ``0`` returns all."""
        return _records(self._read("XRANGE", f"({stream_id}", "+", limit))

    def between(self, since: datetime | None = None, until: datetime | None = None) -> Iterator[Record]:
        """Yield the records *written* in ``[since, until)``, newest first. They are read page by page."""
        for page in self.pages(since, until):
            yield from page

    def pages(
        self, since: datetime | None = None, until: datetime | None = None, mentions: str = ""
    ) -> Iterator[list[Record]]:
        """Yield the records *written* in ``[since, until)``, newest first, page by page.

        With ``mentions``, only records that contain this string are parsed and returned: parsing is most of the work.
        """
        end = "+" if until is None else f"({to_ms(until)}-0"
        start = "-" if since is None else f"{to_ms(since)}-0"
        mark = json.dumps(mentions) if mentions else ""
        while True:
            page = self._read("XREVRANGE", end, start, _PAGE)
            yield _records(page, mark)
            if len(page) < _PAGE:
                return
            end = f"({text(page[-1][0])}"

    def _read(self, command: str, start: str, end: str, limit: int) -> Sequence[tuple[Any, Mapping[Any, Any]]]:
        client = self._client()
        call = client.xrevrange if command == "XREVRANGE" else client.xrange
        with mapped_redis_errors():
            return cast("Sequence[tuple[Any, Mapping[Any, Any]]]", call(self._keys.journal, start, end, count=limit))


def _records(page: Sequence[tuple[Any, Mapping[Any, Any]]], mark: str = "") -> list[Record]:
    """Return the records of a page that contain ``mark``."""
    found = []
    for stream_id, raw in page:
        fields = {text(name): text(value) for name, value in raw.items()}
        n, data = fields.get("n", "0"), fields.get("d", "")
        if mark not in data:
            continue
        found.append(parse(text(stream_id), whole(n), data))
    return found
