"""Commands to redbeat's Redis, and its records."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from redis import exceptions as redis_errors

from ha_beat.redbeat.connection import RedBeatConnection, RedBeatKeys
from ha_beat.store.redis_errors import as_store_error
from ha_beat.store.scripts import pairs, source_of, text, whole

#: Entries per round trip.
PAGE = 500

_FIELDS = ("definition", "meta", "ha_beat")


@dataclass(frozen=True, slots=True)
class Record:
    """Fields of one entry as stored. ``meta`` and ``stamp`` are empty if they are missing."""

    definition: bytes
    meta: bytes = b""
    stamp: bytes = b""


@dataclass(frozen=True, slots=True)
class Mark:
    """Key of this package in redbeat's Redis. If Redis loses the entries, it loses the mark too."""

    id: str
    #: Grows with each change of the schedule that a leader sees.
    seq: int
    #: True until a leader has restored all lost entries.
    restoring: bool = False


@dataclass(frozen=True, slots=True)
class Reading:
    """Records by key, ``None`` for missing ones, and the mark as read after them."""

    records: Mapping[str, Record | None]
    mark: Mark | None
    #: Time in ms until redbeat's lock expires; -1 if it never does, -2 if the lock is free.
    lock_ms: int = -2


def _script(name: str) -> str:
    return source_of(name, "ha_beat.redbeat")


class RedBeatStore:
    """Commands to redbeat's Redis. Used by one thread.

    Every method raises ``StoreUnavailable`` if there is no reply, ``StoreRefused`` if Redis replies with an error.
    """

    def __init__(self, connection: RedBeatConnection, keys: RedBeatKeys) -> None:
        self._connection = connection
        self.keys = keys

    # --- Reading

    def members(self) -> dict[str, float]:
        """Return the keys of all entries, with their scores."""
        (found,) = self._pipeline([("ZRANGE", self.keys.schedule, 0, -1, "WITHSCORES")])
        if found and isinstance(found[0], list | tuple):
            return {_key(key): float(score) for key, score in found}
        flat = list(found or ())
        return {_key(key): float(score) for key, score in zip(flat[::2], flat[1::2], strict=True)}

    def read(self, keys: Sequence[str], unlisted: Iterable[str] = ()) -> Reading:
        """Read these entries, then the mark. ``unlisted`` are the entries that may be missing in the sorted set."""
        asked = list(unlisted)
        commands: list[tuple[Any, ...]] = [("HMGET", key, *_FIELDS) for key in keys]
        commands += [("ZSCORE", self.keys.schedule, key) for key in asked]
        commands.append(("HMGET", self.keys.mark, "id", "seq", "restoring"))
        commands.append(("PTTL", self.keys.lock or self.keys.mark))
        *found, mark, lock_ms = self._pipeline(commands)
        absent = {key for key, score in zip(asked, found[len(keys) :], strict=True) if score is None}
        records = {
            key: None if key in absent else _record(values)
            for key, values in zip(keys, found[: len(keys)], strict=True)
        }
        known = Mark(text(mark[0]), whole(mark[1]), restoring=bool(mark[2])) if mark and mark[0] else None
        return Reading(records, known, int(lock_ms) if self.keys.lock else -2)

    # --- Writing

    def set_mark(self, epoch: int, mark_id: str, **fields: str) -> dict[str, str] | None:
        """Set fields of the mark and return all; ``None`` if a later leader has set some. An existing id stays."""
        args = [part for name, value in fields.items() for part in (name, value)]
        (found,) = self._pipeline([("EVAL", _script("mark"), 1, self.keys.mark, epoch, mark_id, *args)])
        return None if found is None else pairs(found)

    def save(self, epoch: int, records: Mapping[str, tuple[Record, float]], *, replace: bool) -> dict[str, bool] | None:
        """Write entries with their scores. Existing entries are overwritten only if ``replace`` is true.

        Returns:
            True for each entry that was written; ``None`` if a later leader has set the mark.
        """
        written: dict[str, bool] = {}
        for page in pages(list(records)):
            if self._connection.scattered and self._epoch() != epoch:
                return None
            commands: list[tuple[Any, ...]] = []
            for key in page:
                record, score = records[key]
                others = () if self._connection.scattered else (self.keys.schedule, self.keys.mark)
                args = (epoch, "1" if replace else "", record.definition, record.meta, record.stamp, score)
                commands.append(("EVAL", _script("save"), 1 + len(others), key, *others, *args))
            done = [int(answer) for answer in self._pipeline(commands)]
            if -1 in done:
                return None
            written |= {key: one == 1 for key, one in zip(page, done, strict=True)}
            if self._connection.scattered:
                self._pipeline([("ZADD", self.keys.schedule, records[key][1], key) for key in page if written[key]])
        return written

    def write_runs(
        self, metas: Mapping[str, tuple[Record, float]], expected: Mapping[str, bytes]
    ) -> dict[str, bytes | None]:
        """Write the run state and the score of entries whose meta is as expected.

        Returns:
            The present meta of the entries that differ, ``None`` for deleted ones.
        """
        differing: dict[str, bytes | None] = {}
        for page in pages(list(metas)):
            commands: list[tuple[Any, ...]] = [
                ("EVAL", _script("record"), 1, key, expected[key], metas[key][0].meta, metas[key][0].stamp)
                for key in page
            ]
            answers = dict(zip(page, self._pipeline(commands), strict=True))
            differing |= {key: None if answer == 0 else bytes(answer) for key, answer in answers.items() if answer != 1}
            scores = [part for key in page if answers[key] == 1 for part in (metas[key][1], key)]
            if scores:
                self._pipeline([("ZADD", self.keys.schedule, "XX", *scores)])
        return differing

    def statics(self) -> set[str]:
        """Return the names of the entries of the settings that redbeat or this package has written."""
        (found,) = self._pipeline([("SMEMBERS", self.keys.statics)])
        return {_key(name) for name in found or ()}

    def note_statics(self, epoch: int, added: Iterable[str], removed: Sequence[str]) -> bool:
        """Note the names of entries of the settings, and delete the ``removed`` entries.

        Returns:
            False if a later leader has set the mark.
        """
        names, keys = list(added), [self.keys.entry(name) for name in removed]
        if not self._connection.scattered:
            where = (self.keys.statics, self.keys.schedule, self.keys.mark, *keys)
            (done,) = self._pipeline([("EVAL", _script("statics"), len(where), *where, epoch, *removed, *names)])
            return int(done) == 1
        if self._epoch() != epoch:
            return False
        commands: list[tuple[Any, ...]] = [("SADD", self.keys.statics, name) for name in names]
        commands += [("SREM", self.keys.statics, name) for name in removed]
        commands += [("ZREM", self.keys.schedule, key) for key in keys]
        self._pipeline([*commands, *(("DEL", key) for key in keys)])
        return True

    def _epoch(self) -> int:
        (found,) = self._pipeline([("HGET", self.keys.mark, "epoch")])
        return whole(found)

    def _pipeline(self, commands: Sequence[tuple[Any, ...]]) -> list[Any]:
        if not commands:
            return []
        try:
            with self._connection.client().pipeline(transaction=False) as together:
                for name, *args in commands:
                    together.execute_command(name, *map(_raw, args))
                answers: list[Any] = together.execute(raise_on_error=False)
        except (redis_errors.RedisError, redis_errors.RedisClusterException, OSError) as exc:
            raise as_store_error(exc) from exc
        for command, answer in zip(commands, answers, strict=True):
            if isinstance(answer, Exception) and not (command[0] == "HMGET" and "WRONGTYPE" in str(answer)):
                raise as_store_error(answer, command[0]) from answer
        return answers


def pages(keys: Sequence[str]) -> Iterable[Sequence[str]]:
    return (keys[start : start + PAGE] for start in range(0, len(keys), PAGE))


def _raw(value: Any) -> Any:
    return value.encode("utf-8", "surrogateescape") if isinstance(value, str) else value


def _key(raw: Any) -> str:
    """Return a key as text. Bytes that are not UTF-8 are kept."""
    return raw.decode("utf-8", "surrogateescape") if isinstance(raw, bytes) else str(raw)


def _record(values: Any) -> Record | None:
    """Return the record with these fields, ``None`` if there is none. A key of another type is not an entry."""
    if isinstance(values, Exception) or not values or values[0] is None:
        return None
    return Record(*(value or b"" for value in values))
