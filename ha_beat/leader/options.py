"""What the enqueuer goes by."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Rules:
    """Durations in seconds.

    ``handover_after``: a broker out of reach for so long is left to another replica (for longer each time that did not
    help). ``claims_settle_after``: a claim
    of another term can't be under way any more. ``changed_server_pause``: nothing is dispatched for so long after a
    lease was taken over from another holder on another server process.
    """

    batch_size: int = 100
    publish_deadline: float | None = 60.0
    catch_up_after_loss: bool = False
    handover_after: float = 10.0
    claims_settle_after: float = 6.0
    changed_server_pause: float = 10.0
