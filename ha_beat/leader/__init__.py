"""The leader's work: takes over the ledger, then enqueues what is due, batch by batch, in order of due time.

:class:`Enqueuer` says what comes next; each step of a batch has a module of its own: :mod:`gathering` makes operations
of what is due, :mod:`settling` takes in the answers, :mod:`claims` sees to messages of unknown fate, :mod:`backoff`
spaces out what fails.
"""

from ha_beat.leader.backoff import BrokerOutOfReach
from ha_beat.leader.enqueuer import Enqueuer
from ha_beat.leader.options import Rules
from ha_beat.leader.planner import ScheduleSource

__all__ = ["BrokerOutOfReach", "Enqueuer", "Rules", "ScheduleSource"]
