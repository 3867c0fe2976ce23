"""From django-celery-beat's rows to a schedule in the settings."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

from celery import Celery
from click.testing import CliRunner

from ha_beat.cli.celery_command import ha_beat
from ha_beat.store.ledger import LedgerRow
from tests.integration.django.conftest import Site


def test_rows_are_taken_over_by_name(site: Site) -> None:
    """Each entry of the settings stands where its row left it; a row without an entry is named."""
    from django_celery_beat.models import IntervalSchedule, PeriodicTask

    at = datetime.now(UTC) - timedelta(minutes=90)
    every = IntervalSchedule.objects.create(every=1, period="hours")
    for name in ("hourly", "only-in-the-database"):
        PeriodicTask.objects.create(name=name, task="tick", interval=every, last_run_at=at, total_run_count=5)
    app = Celery("tick", broker=site.redis.url, set_as_current=False)
    app.conf.update(beat_scheduler="ha_beat", beat_schedule={"hourly": {"task": "tick", "schedule": 3600.0}})
    result = CliRunner().invoke(ha_beat, ["migrate", "--from", "django"], obj=SimpleNamespace(app=app))
    assert result.exit_code == 0, result.output
    assert "only-in-the-database is not in beat_schedule" in result.output
    row = LedgerRow.parse(site.redis.client(decode_responses=True).hget("{ha-beat:tick}:ledger", "e:hourly"))
    assert row is not None
    assert (row.base, row.run_count, row.verdict) == (at, 5, "armed")
