"""The header by which a message tells which occurrence it is."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ha_beat.headers import HEADER

__all__ = ["HEADER", "with_header"]


def with_header(options: Mapping[str, Any], header: Mapping[str, Any], task_id: str) -> dict[str, Any]:
    """The entry's options with beat's mark, ours, and the task id. The entry's own are left as they are."""
    headers = {**(options.get("headers") or {}), "celery_beat_task": True, HEADER: dict(header)}
    return {**options, "headers": headers, "task_id": task_id}
