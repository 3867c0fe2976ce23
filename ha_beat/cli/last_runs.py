"""Last runs as other schedulers record them, by entry name."""

from __future__ import annotations

import glob
import json
import shelve
from collections.abc import Callable, Iterable, Mapping
from contextlib import closing
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

from celery import Celery

from ha_beat.errors import ConfigurationError, StoreUnavailable
from ha_beat.exception_text import exception_line
from ha_beat.store.scripts import text


@dataclass(frozen=True, slots=True)
class LastRun:
    """Last run of an entry, in UTC, and its number of runs."""

    at: datetime
    count: int = 0


def celerybeat_last_runs(path: str, app: Celery) -> dict[str, LastRun]:
    """Return the last runs from the file of Celery's ``PersistentScheduler``.

    The file holds pickles: it must come from a trusted source.

    Raises:
        ConfigurationError: the file does not exist, or is not a schedule file.
    """
    place = Path(path).resolve()
    if not any(place.parent.glob(f"{glob.escape(place.name)}*")):
        raise ConfigurationError(
            f"there is no schedule file {str(place)!r}: set --file to the path that beat's option -s had"
        )
    try:
        with closing(shelve.open(path, flag="r")) as store:  # noqa: S301 -- the format of beat itself
            entries: Mapping[str, Any] = store["entries"]
            in_utc = bool(store.get("utc_enabled", True))
    except Exception as exc:
        raise ConfigurationError(
            f"{path!r} can't be read as a schedule file: {exception_line(exc)}. Stop beat first, and set --file to the "
            f"path that beat's option -s had, without the ending that the system adds"
        ) from exc
    zone = UTC if in_utc else app.timezone
    return {
        name: LastRun(_in_utc(entry.last_run_at, zone), int(entry.total_run_count or 0))
        for name, entry in entries.items()
        if entry.last_run_at is not None
    }


def _in_utc(instant: datetime, zone: Any) -> datetime:
    return (instant.replace(tzinfo=zone) if instant.tzinfo is None else instant).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class RedBeat:
    """Records of redbeat in Redis, under its key prefix."""

    client: Callable[[], Any]
    prefix: str

    def last_runs(self, names: Iterable[str]) -> dict[str, LastRun]:
        """Return the last runs of these entries, without those that have never run.

        Raises:
            StoreUnavailable: Redis failed.
        """
        client, found = self._call(self.client), {}
        for name in names:
            meta = self._call(client.hget, self.prefix + name, "meta")
            run = _from_meta(text(meta)) if meta is not None else None
            if run is not None:
                found[name] = run
        return found

    def names(self) -> set[str]:
        """Return the names of all entries.

        Raises:
            StoreUnavailable: Redis failed.
        """
        keys = self._call(self._call(self.client).zrange, f"{self.prefix}:schedule", 0, -1)
        return {text(key).removeprefix(self.prefix) for key in keys}

    @staticmethod
    def _call(command: Callable[..., Any], *args: Any) -> Any:
        try:
            return command(*args)
        except Exception as exc:
            raise StoreUnavailable(f"the Redis of redbeat failed: {exception_line(exc)}") from exc


def _from_meta(raw: str) -> LastRun | None:
    """Return the last run from redbeat's JSON, or ``None`` for an entry that has never run."""
    meta: Any = json.loads(raw, object_hook=_decoded)
    last = meta.get("last_run_at") if isinstance(meta, dict) else None
    return LastRun(last.astimezone(UTC), int(meta.get("total_run_count") or 0)) if isinstance(last, datetime) else None


def _decoded(found: dict[str, Any]) -> Any:
    if found.get("__type__") != "datetime":
        return found
    zone = found.get("timezone", "UTC")
    in_zone = ZoneInfo(zone) if isinstance(zone, str) else timezone(timedelta(seconds=float(zone)))
    parts = {
        part: int(found.get(part, 0)) for part in ("year", "month", "day", "hour", "minute", "second", "microsecond")
    }
    at: Any = datetime(**parts, tzinfo=in_zone)
    return at
