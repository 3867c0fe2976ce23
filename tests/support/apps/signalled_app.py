"""Tick app with a scheduler that gets the signal a second time while it closes.

SECOND_SIGNAL   number of the signal
MOMENT          `before` or `after` the lease is released
"""

import os

from ha_beat.scheduler import HAScheduler
from tests.support.apps.tick_app import app  # noqa: F401 -- found by celery -A


class SignalledScheduler(HAScheduler):
    _signalled = False

    def _signal(self, moment: str) -> None:
        if moment == os.environ["MOMENT"] and not self._signalled:
            self._signalled = True
            os.kill(os.getpid(), int(os.environ["SECOND_SIGNAL"]))

    def close(self) -> None:
        self._signal("before")
        super().close()
        self._signal("after")
