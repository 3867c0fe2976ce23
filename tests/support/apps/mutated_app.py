"""`tick_app` in a process without one guard of ha_beat: `APP_MUTANT` names it (see `tests.guards`)."""

import os

from tests.guards import MUTANTS
from tests.support.apps.tick_app import app

__all__ = ["app"]

MUTANTS[os.environ["APP_MUTANT"]].apply()
