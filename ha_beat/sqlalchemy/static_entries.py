"""Rows of sqlalchemy-celery-beat for the entries of the settings."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from celery.schedules import crontab, schedule
from sqlalchemy import select
from sqlalchemy.orm import Session
from sqlalchemy_celery_beat.clockedschedule import clocked
from sqlalchemy_celery_beat.models import CrontabSchedule, IntervalSchedule, Period
from sqlalchemy_celery_beat.schedulers import ModelEntry
from sqlalchemy_celery_beat.tzcrontab import TzAwareCrontab

from ha_beat.row_store.backend import Definition
from ha_beat.row_store.static_entries import OPTIONS, microseconds_of, row_schedule, unpacked
from ha_beat.sqlalchemy.database import SqlDatabase

#: Options that a row can hold.
_OPTIONS = OPTIONS | {"one_off", "start_time"}


class SqlStaticRows:
    """Rows for the entries of the settings."""

    def __init__(self, database: SqlDatabase, model: Any) -> None:
        self._database = database
        self._model = model

    def present(self, names: Collection[str]) -> tuple[str, set[str]]:
        """Return the identity of the database and the present names. A database with an empty table counts as new."""
        name = self._model.name
        with self._database.transaction():
            found = {found for (found,) in self._database.rows(select(name).where(name.in_(names)))}
            used = found or self._database.rows(select(name).limit(1))
        return self._database.identity if used else "", found

    def write(self, name: str, definition: Definition) -> list[str]:
        entry, lost = unpacked(definition, _OPTIONS)
        entry["options"] = {option: value for option, value in entry["options"].items() if option in _OPTIONS}
        with self._database.transaction(), Session(self._database.connection, expire_on_commit=False) as session:
            fields = _Fields._unpack_fields(session, **entry)  # noqa: SLF001 -- as DatabaseScheduler does
            task = session.scalar(select(self._model).where(self._model.name == name))
            if task is None:
                session.add(self._model(name=name, **fields))
            else:
                task.update(**fields)
            session.commit()
        return lost


class _Fields(ModelEntry):  # type: ignore[misc]  # sqlalchemy-celery-beat has no types
    """Converter of an entry of the settings to the fields of a row."""

    @classmethod
    def to_model_schedule(cls, session: Session, value: Any) -> Any:
        source: Any = row_schedule(value, {clocked, TzAwareCrontab})
        if isinstance(source, crontab):
            parts = ("minute", "hour", "day_of_week", "day_of_month", "month_of_year")
            spec = {part: CrontabSchedule.cronexp(getattr(source, f"_orig_{part}")) for part in parts}
            # sqlalchemy-celery-beat fails if the time zone is not a ZoneInfo, such as Celery's UTC.
            return _first(session, CrontabSchedule, **spec, timezone=str(source.tz))
        if type(source) is schedule:
            interval: Any = source
            micros = microseconds_of(source)
            if micros is not None:
                return _first(session, IntervalSchedule, every=micros, period=Period.MICROSECONDS)
            seconds = round(interval.run_every.total_seconds())
            return _first(session, IntervalSchedule, every=seconds, period=Period.SECONDS)
        return super().to_model_schedule(session, source)


def _first(session: Session, model: Any, **fields: Any) -> Any:
    """Return the first schedule with these fields; create one if there is none."""
    found = session.scalar(select(model).filter_by(**fields).order_by(model.id).limit(1))
    if found is None:
        found = model(**fields)
        session.add(found)
        session.flush()
    return found
