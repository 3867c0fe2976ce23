"""Status of a replica and its cluster. The poller writes it; health, the page and the metrics read it."""

from ha_beat.monitoring.status.document import cluster_document, document
from ha_beat.monitoring.status.health import Problems, current_warnings, why_not_live, why_not_ready
from ha_beat.monitoring.status.members import member_record, members_seen
from ha_beat.monitoring.status.poller import Poller
from ha_beat.monitoring.status.replica import ReplicaStatus
from ha_beat.monitoring.status.snapshot import Snapshot, spans
from ha_beat.monitoring.status.unattended import unattended

__all__ = [
    "Poller",
    "Problems",
    "ReplicaStatus",
    "Snapshot",
    "cluster_document",
    "current_warnings",
    "document",
    "member_record",
    "members_seen",
    "spans",
    "unattended",
    "why_not_live",
    "why_not_ready",
]
