"""Headers for testing a task as if ha_beat had enqueued it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ha_beat.headers import HEADER, header_of
from ha_beat.reasons import MessageKind
from ha_beat.schedule.occurrence import Occurrence


def occurrence_headers(
    entry: str,
    scheduled_at: datetime,
    *,
    cluster: str = "test",
    epoch: int = 1,
    run_count: int = 1,
    manual: bool = False,
    backfill: bool = False,
) -> dict[str, dict[str, Any]]:
    """Return the headers of an occurrence's message, to run a task as ha_beat would.

    ::

        report.apply(headers=occurrence_headers("nightly-report", datetime(2030, 1, 7, 9, tzinfo=UTC)))

    Raises:
        ValueError: ``scheduled_at`` has no time zone.
    """
    if scheduled_at.tzinfo is None:
        raise ValueError(f"scheduled_at needs a time zone, such as tzinfo=UTC: {scheduled_at}")
    header = header_of(cluster, entry, Occurrence(entry, scheduled_at).instant, epoch=epoch, run_count=run_count)
    kinds = {MessageKind.MANUAL: manual, MessageKind.BACKFILL: backfill}
    return {HEADER: header | {str(kind): True for kind, requested in kinds.items() if requested}}
