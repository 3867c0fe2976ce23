"""Parts and options of a replica that its terms share."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from ha_beat import events
from ha_beat.budget import Pace
from ha_beat.clock import Clock
from ha_beat.dispatch import Dispatcher
from ha_beat.election.cluster_clock import SchedulingTime
from ha_beat.leader.forecast import Forecast
from ha_beat.leader.kept_messages import KeptMessages
from ha_beat.leader.pause import PauseState
from ha_beat.leader.planner import ScheduleSource
from ha_beat.store.lease import Term
from ha_beat.store.shadow import Shadow


@dataclass(frozen=True, slots=True)
class LeaderOptions:
    """Options of the leader. Durations are in seconds.

    ``handover_after``: a leader whose broker has been unreachable for this long steps down. The duration grows each
    time that this did not help. ``claim_in_flight_for``: how long a claim of an earlier attempt may be in flight.
    ``changed_server_pause``: nothing is dispatched for this long after a leader succeeded another holder on another
    server process.
    """

    batch_size: int = 100
    publish_deadline: float | None = 60.0
    catch_up_after_loss: bool = False
    handover_after: float = 10.0
    claim_in_flight_for: float = 6.0
    changed_server_pause: float = 10.0


@dataclass(frozen=True, slots=True)
class LeaderParts:
    """Parts of a replica that its terms share. ``pace`` bounds the time in which a batch is built."""

    source: ScheduleSource
    choose_dispatcher: Callable[[Term], Dispatcher]
    shadow: Shadow
    time: SchedulingTime
    cluster: str
    clock: Clock
    emit: Callable[[events.Event], None]
    options: LeaderOptions
    pause: PauseState
    pace: Pace
    #: Entries that a new leader loads first; ``None`` for no preference.
    forecast: Forecast | None = None
    kept: KeptMessages = field(default_factory=KeptMessages)
