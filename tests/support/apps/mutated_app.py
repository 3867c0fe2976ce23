"""`tick_app` in a process from which a guard of ha_beat is taken out: `APP_MUTANT` names it (see `tests.mutants`)."""

from __future__ import annotations

import os

from tests.mutants import MUTANTS
from tests.support.apps.tick_app import app

__all__ = ["app"]

if os.environ.get("APP_MUTANT"):
    MUTANTS[os.environ["APP_MUTANT"]].apply()
