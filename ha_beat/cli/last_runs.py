"""What other schedulers have recorded of their last runs, by the entry's name."""

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
from ha_beat.store.scripts import text


@dataclass(frozen=True, slots=True)
class LastRun:
    """When an entry last ran, in UTC, and how often it did."""

    at: datetime
    count: int = 0


def of_celerybeat(path: str, app: Celery) -> dict[str, LastRun]:
    """From the file of Celery's ``PersistentScheduler``. It holds pickles: read no file of a stranger's.

    Raises:
        ConfigurationError: there is no such file, or it is another kind of file.
    """
    place = Path(path).resolve()
    if not any(place.parent.glob(f"{glob.escape(place.name)}*")):
        raise ConfigurationError(
            f"there is no schedule file {str(place)!r}: give with --file what beat was given by -s"
        )
    try:
        with closing(shelve.open(path, flag="r")) as store:  # noqa: S301 -- the format that beat itself reads
            entries: Mapping[str, Any] = store["entries"]
            known_in_utc = bool(store.get("utc_enabled", True))
    except Exception as exc:
        raise ConfigurationError(
            f"{path!r} can't be read as beat's schedule file: {type(exc).__name__}: {exc}. Give its name without the "
            f"ending that the system adds, as beat's -s does; and stop beat first, which holds it open"
        ) from exc
    zone = UTC if known_in_utc else app.timezone
    return {
        name: LastRun(_in_utc(entry.last_run_at, zone), int(entry.total_run_count or 0))
        for name, entry in entries.items()
        if entry.last_run_at is not None
    }


def _in_utc(instant: datetime, zone: Any) -> datetime:
    return (instant.replace(tzinfo=zone) if instant.tzinfo is None else instant).astimezone(UTC)


@dataclass(frozen=True, slots=True)
class RedBeat:
    """What redbeat keeps, in Redis, under its key prefix."""

    client: Callable[[], Any]
    prefix: str
    #: Its Redis, without secrets.
    place: str = ""

    def last_runs(self, names: Iterable[str]) -> dict[str, LastRun]:
        """Of these entries, where redbeat knows them to have run.

        Raises:
            StoreUnavailable: Redis can't be asked.
        """
        client, found = self._ask(self.client), {}
        for name in names:
            meta = self._ask(client.hget, self.prefix + name, "meta")
            run = _from_meta(text(meta)) if meta is not None else None
            if run is not None:
                found[name] = run
        return found

    def names(self) -> set[str]:
        """Every entry that it schedules.

        Raises:
            StoreUnavailable: Redis can't be asked.
        """
        keys = self._ask(self._ask(self.client).zrange, f"{self.prefix}:schedule", 0, -1)
        return {text(key).removeprefix(self.prefix) for key in keys}

    @staticmethod
    def _ask(question: Callable[..., Any], *args: Any) -> Any:
        try:
            return question(*args)
        except Exception as exc:
            raise StoreUnavailable(f"redbeat's Redis: {type(exc).__name__}: {exc}") from exc


def _from_meta(raw: str) -> LastRun | None:
    """What redbeat's JSON says; ``None`` for an entry that never ran."""
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
