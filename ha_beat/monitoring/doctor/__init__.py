"""Checks of a cluster's configuration and state, from outside."""

from ha_beat.monitoring.doctor.examination import examine
from ha_beat.monitoring.doctor.finding import Finding

__all__ = ["Finding", "examine"]
