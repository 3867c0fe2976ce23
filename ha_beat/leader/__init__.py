"""Work of the leader.

:class:`Enqueuer` creates a :class:`~ha_beat.leader.term.LeaderTerm` for each term of this replica. In a term, an
occurrence passes through these modules:

- ``due_queue`` holds the entries in order of due time,
- ``batch_builder`` makes an operation of each entry that is due,
- a dispatcher (:mod:`ha_beat.dispatch`) submits the batch,
- ``results`` applies the answers and puts the entries back into the queue.

``schedule_loader`` fills the queue when a term begins and after an edit, ``reconcile`` places the entries, ``recovery``
and ``state_loss`` handle a Redis that lost data, ``open_claims`` handles messages of unknown outcome, and ``backoff``
spaces out retries.
"""

from ha_beat.leader.backoff import BrokerOutOfReach
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.options import LeaderOptions
from ha_beat.leader.parts import LeaderParts
from ha_beat.leader.planner import ScheduleSource

__all__ = ["BrokerOutOfReach", "Enqueuer", "LeaderOptions", "LeaderParts", "ScheduleSource"]
