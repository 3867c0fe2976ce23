"""Status of a replica and its cluster. The poller writes it; health, the page and the metrics read it."""

from ha_beat.monitoring.status.document import cluster_document, document, encoded
from ha_beat.monitoring.status.poller import Poller
from ha_beat.monitoring.status.replica import ElectionStatus, Health, ReplicaStatus
from ha_beat.monitoring.status.snapshot import Snapshot, TermSpan, spans
from ha_beat.monitoring.status.unattended import unattended
from ha_beat.monitoring.status.warnings import StatusWarning

__all__ = [
    "ElectionStatus",
    "Health",
    "Poller",
    "ReplicaStatus",
    "Snapshot",
    "StatusWarning",
    "TermSpan",
    "cluster_document",
    "document",
    "encoded",
    "spans",
    "unattended",
]
