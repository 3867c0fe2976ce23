"""Start of the scheduler for sqlalchemy-celery-beat."""

import pytest
from celery import Celery

pytest.importorskip("sqlalchemy_celery_beat")


def test_scheduler_starts_while_the_database_is_away():
    """Only its threads connect and create tables."""
    from ha_beat.sqlalchemy.schedulers import HADatabaseScheduler

    rows = Celery("rows", broker="redis://localhost:6379/0", set_as_current=False)
    rows.conf.beat_dburi = "postgresql+psycopg://user:hidden@127.0.0.1:1/none"
    scheduler = HADatabaseScheduler(app=rows)
    assert scheduler.schedule == {}
    assert scheduler.max_interval == 5
    with pytest.raises(Exception) as raised:
        scheduler.database.refresh()
    fault = scheduler.database.fault(raised.value)
    assert fault is not None
    assert fault.name == "UNREACHABLE"


@pytest.mark.parametrize(
    "url", ["sqlite+aiosqlite:///x.db", "nothing://u:hidden@host/x", "u:hidden@host", "oracle://u:hidden@host/x"]
)
def test_unusable_url_ends_the_start_without_its_password(url):
    from ha_beat.sqlalchemy.schedulers import HADatabaseScheduler

    rows = Celery("rows", broker="redis://localhost:6379/0", set_as_current=False)
    rows.conf.beat_dburi = url
    with pytest.raises(SystemExit) as ended:
        HADatabaseScheduler(app=rows)
    assert "beat_dburi" in str(ended.value)
    assert "hidden" not in str(ended.value)


def test_identity_of_a_database_is_its_place_alone():
    """A static entry without a row counts as deleted only in the database to which it was written."""
    from sqlalchemy import MetaData

    from ha_beat.sqlalchemy.database import SqlDatabase

    def identity(url: str = "sqlite://", **options: object) -> str:
        return SqlDatabase(url, None, options, MetaData()).identity

    same = [
        identity(),
        identity(pool_size=3),
        identity(echo=False),
        identity(connect_args={"timeout": 9, "password": "p"}),
    ]
    assert len(set(same)) == 1
    others = [identity("sqlite:///x"), *(identity(connect_args={"host": host}) for host in "ab")]
    assert len({*same, *others}) == 4
