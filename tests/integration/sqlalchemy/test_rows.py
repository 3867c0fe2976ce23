"""Rows of sqlalchemy-celery-beat that no other store can have: malformed values, schemas, isolation levels."""

import threading
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from ha_beat.reasons import EntryFault
from tests.integration.row_store.conftest import SqlRows
from tests.integration.row_store.replica import Replica
from tests.support.servers import Postgres, need

pytest.importorskip("sqlalchemy_celery_beat")

from sqlalchemy import event, text


@pytest.fixture
def sqlite(tmp_path: Path) -> SqlRows:
    return SqlRows(f"sqlite:///{tmp_path}/rows.db")


@pytest.fixture(scope="module")
def server() -> Iterator[Postgres]:
    with need(Postgres) as server:
        yield server


@pytest.fixture
def on_postgres(server: Postgres) -> Iterator[Callable[..., SqlRows]]:
    made: list[SqlRows] = []

    def make(**conf: Any) -> SqlRows:
        rows = SqlRows(server.sqlalchemy_url, conf.get("beat_schema"))
        rows.app.conf.update(conf)
        made.append(rows)
        return rows

    yield make
    for rows in made:
        rows.models.ModelBase.metadata.drop_all(rows.engine)


@pytest.mark.parametrize(
    ("name", "statement"),
    [
        ("bad", "UPDATE celery_intervalschedule SET period = 'fortnights' WHERE every = 7"),
        ("row 2", "UPDATE celery_periodictask SET last_run_at = 'yesterday' WHERE name = 'bad'"),
    ],
)
def test_malformed_row_is_reported_and_read_once_it_is_mended(sqlite, name, statement):
    """A later release of sqlalchemy-celery-beat may have more values."""
    for other in range(3):
        sqlite.add(f"good {other}")
        if not other:
            sqlite.add("bad", schedule={"every": 7, "period": "seconds"})
    with sqlite.engine.begin() as connection:
        connection.execute(text(statement))
    replica = Replica(sqlite, leads=False)
    assert replica.names == {"good 0", "good 1", "good 2"}
    assert replica.failed_entries() == [(name, EntryFault.INVALID)]
    with sqlite.engine.begin() as connection:
        connection.execute(text("UPDATE celery_intervalschedule SET period = 'hours' WHERE every = 7"))
        connection.execute(text("UPDATE celery_periodictask SET last_run_at = NULL"))
    sqlite.save("good 0", queue="q")
    replica.turn()
    assert replica.names == {"bad", "good 0", "good 1", "good 2"}


def test_standby_executes_queries_only(sqlite, now):
    sqlite.add("task", one_off=True, expires=now)
    replica = Replica(sqlite, leads=False)
    statements: list[str] = []
    engine = replica.store.database.engine  # type: ignore[attr-defined]
    event.listen(engine, "before_cursor_execute", lambda *given: statements.append(given[2]))
    sqlite.save("task", queue="q")
    replica.clock.ahead += 301
    replica.turn(3)
    assert replica.entry("task").options["queue"] == "q"
    assert {statement.split()[0] for statement in statements} == {"SELECT"}


def test_schema_of_the_settings_has_the_tables(on_postgres, now):
    rows = on_postgres(beat_schema="beat")
    rows.add("once", one_off=True)
    rows.add("task")
    replica = Replica(rows)
    replica.ran("task", now, 3)
    replica.finished("once")
    replica.turn()
    assert rows.state() == {"once": (False, None, 0), "task": (True, now, 3)}
    assert rows.store().static.present(["task"])[1] == {"task"}


def test_conflict_of_transactions_does_not_count_as_lost_connection(on_postgres, now):
    """Under this isolation level an update fails if another transaction has changed the row since the snapshot."""
    rows = on_postgres(beat_engine_options={"isolation_level": "REPEATABLE READ", "pool_pre_ping": True})
    for name in ("task", "other"):
        rows.add(name)
    replica = Replica(rows)
    for name in ("task", "other"):
        replica.ran(name, now, 1)
    with rows.engine.connect() as other:
        other.execute(text("UPDATE celery_periodictask SET queue = 'q' WHERE name = 'task'"))
        timer = threading.Timer(0.3, other.commit)
        timer.start()
        replica.turn()
        timer.join()
    assert rows.state() == {"task": (True, now, 1), "other": (True, now, 1)}


def test_schedule_that_is_replaced_while_its_row_is_read_is_no_error(on_postgres):
    """Rows and schedules are read by separate queries."""
    rows = on_postgres()
    rows.add("task", schedule={"every": 7, "period": "seconds"})
    rows.add("other", "crontab", schedule={"minute": "5"})
    replica = Replica(rows, leads=False)
    statements: list[str] = []
    rows.save("task", queue="q")

    def replace(*given: Any) -> None:
        if "periodictask_1" in given[2] and not statements:
            statements.append(given[2])
            with rows.engine.begin() as other:
                other.execute(text("UPDATE celery_periodictask SET discriminator = 'crontabschedule', schedule_id = 1"))

    event.listen(replica.store.database.engine, "before_cursor_execute", replace)  # type: ignore[attr-defined]
    replica.turn()
    assert (len(statements), replica.events) == (1, [])
    assert type(replica.entry("task").schedule) is type(replica.entry("other").schedule)


@pytest.fixture
def now() -> datetime:
    return datetime.now(UTC).replace(microsecond=0)
