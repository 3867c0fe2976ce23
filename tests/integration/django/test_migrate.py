"""Migration from django-celery-beat's rows to a schedule in the settings."""

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from celery import Celery
from click.testing import CliRunner

from ha_beat.cli.celery_command import ha_beat
from ha_beat.store.ledger import LedgerRow
from tests.integration.django.conftest import Site
from tests.integration.django.rows import every, row


def test_migration_copies_last_runs_by_name(site: Site):
    """A row without an entry in the settings is reported."""
    at = datetime.now(UTC) - timedelta(minutes=90)
    for name in ("hourly", "only-in-the-database"):
        row(name, interval=every(3600), last_run_at=at, total_run_count=5)
    app = Celery("tick", broker=site.redis.url, set_as_current=False)
    app.conf.update(beat_scheduler="ha_beat", beat_schedule={"hourly": {"task": "tick", "schedule": 3600.0}})
    result = CliRunner().invoke(ha_beat, ["migrate", "--from", "django"], obj=SimpleNamespace(app=app))
    assert result.exit_code == 0, result.output
    assert "only-in-the-database" in result.output
    found = LedgerRow.parse(site.redis.client(decode_responses=True).hget("{ha-beat:tick}:ledger", "e:hourly"))
    assert found is not None
    assert (found.base, found.run_count, found.verdict) == (at, 5, "armed")
