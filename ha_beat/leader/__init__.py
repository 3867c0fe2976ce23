"""Work of the leader.

:class:`Enqueuer` creates a :class:`~ha_beat.leader.term_work.TermWork` for each term of this replica. In a term, an
occurrence passes through these modules:

- ``due_queue`` holds the entries in order of due time.
- ``batches/batch_builder`` builds an operation for each due entry.
- ``batches/submitter`` hands the batch to a dispatcher (:mod:`ha_beat.dispatch`).
- ``batches/results`` applies the answers, and ``planner`` puts the entries back into the queue.

``loading/`` fills the queue when a term begins and after an edit, also after Redis lost data. ``requests/`` serves the
requests of the CLI and the admin. ``open_claims`` handles messages of unknown outcome.
"""

from ha_beat.leader.batches.backoff import BrokerOutOfReach
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.parts import LeaderOptions, LeaderParts
from ha_beat.leader.planner import ScheduleSource

__all__ = ["BrokerOutOfReach", "Enqueuer", "LeaderOptions", "LeaderParts", "ScheduleSource"]
