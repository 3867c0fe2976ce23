"""What a task of one's own finds in a message of ha_beat."""

from __future__ import annotations

from datetime import datetime
from typing import Any

from ha_beat.headers import HEADER
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
    """The headers that the message of an occurrence has, to run a task with as beat would.

    ::

        report.apply(headers=occurrence_headers("nightly-report", datetime(2030, 1, 7, 9, tzinfo=UTC)))

    Raises:
        ValueError: ``scheduled_at`` has no time zone.
    """
    if scheduled_at.tzinfo is None:
        raise ValueError(f"scheduled_at needs a time zone, such as tzinfo=UTC: {scheduled_at}")
    header: dict[str, Any] = {
        "cluster": cluster,
        "entry": entry,
        "scheduled_at": Occurrence(entry, scheduled_at).instant,
        "epoch": epoch,
        "run_count": run_count,
    }
    kinds = {"manual": manual, "backfill": backfill}
    return {HEADER: header | {kind: True for kind, asked in kinds.items() if asked}}
