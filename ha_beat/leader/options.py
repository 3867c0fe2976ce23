"""Options of the leader."""

from __future__ import annotations

from dataclasses import dataclass


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
