"""Events of requests to the leader."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from ha_beat.events.base import Event
from ha_beat.reasons import MessageKind, ReplyCode, RequestKind


@dataclass(frozen=True, slots=True)
class Paused(Event):
    """The cluster is paused. ``found`` is True if the pause was already in force when this leader's term began."""

    since: datetime
    by: str
    reason: str
    found: bool


@dataclass(frozen=True, slots=True)
class Resumed(Event):
    """The cluster was resumed ``after`` seconds."""

    by: str
    after: float


@dataclass(frozen=True, slots=True)
class RequestAnswered(Event):
    """The leader answered a request of ``by``."""

    kind: RequestKind
    by: str
    code: ReplyCode
    #: Depends on the code.
    data: Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class EnqueuedOnRequest(Event):
    """A message was enqueued on request. The entry's position did not change."""

    entry: str
    task: str
    task_id: str
    scheduled_at: datetime
    kind: MessageKind
    by: str
