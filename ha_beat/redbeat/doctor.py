"""Check of redbeat's Redis, for ``celery ha-beat doctor``."""

from __future__ import annotations

from celery import Celery

from ha_beat.errors import HaBeatError
from ha_beat.monitoring.doctor.finding import Finding, ok, warn
from ha_beat.redbeat.connection import connect, keys_of, url_of
from ha_beat.redbeat.store import RedBeatStore
from ha_beat.settings import redact_url


def check_redbeat(app: Celery, timeout: float) -> Finding:
    """Check that redbeat's Redis answers and that redbeat's own beat does not run."""
    try:
        store = RedBeatStore(connect(app, timeout), keys_of(app))
        entries, reading = len(store.members()), store.read(())
    except HaBeatError as exc:
        return warn("redbeat", f"edits of entries wait: its Redis failed: {exc}")
    if reading.lock_ms != -2:
        detail = f"its lock is held for another {max(reading.lock_ms, 0) / 1000:.0f} s: if redbeat's beat still runs, "
        return warn("redbeat", f"{detail}each entry is enqueued twice")
    return ok("redbeat", f"{entries} entries at {redact_url(url_of(app))}")
