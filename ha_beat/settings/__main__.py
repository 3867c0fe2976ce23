"""Program that prints the table of the settings."""

import sys

from ha_beat.settings import settings_table

sys.stdout.write(settings_table() + "\n")
