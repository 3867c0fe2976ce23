"""The exceptions of ha_beat, all under one root."""

from __future__ import annotations


class HaBeatError(Exception):
    """Root of everything that ha_beat raises."""


class ConfigurationError(HaBeatError):
    """Settings that cannot be used. The message has one line for each fault, and never a password."""


class StoreError(HaBeatError):
    """Redis did not do what it was asked."""


class StoreUnavailable(StoreError):
    """No answer came. Whether the command was carried out is unknown, unless ``acted`` is False."""

    def __init__(self, message: str, *, acted: bool = True) -> None:
        super().__init__(message)
        self.acted = acted


class StoreRefused(StoreError):
    """Redis answered with an error, and so did nothing (``NOPERM``, ``OOM``, ``READONLY``, …).

    ``unexplained``: without one of the codes that say what is wrong with Redis itself.
    """

    def __init__(self, message: str, *, unexplained: bool = False) -> None:
        super().__init__(message)
        self.unexplained = unexplained


class LeadershipForbidden(HaBeatError):
    """This replica must not lead this cluster; waiting does not help."""


class ForeignApp(LeadershipForbidden):
    """The cluster name is in use by another app."""

    def __init__(self, cluster: str, ours: str, theirs: str) -> None:
        super().__init__(
            f"the cluster name {cluster!r} belongs to another app: its ledger says {theirs!r}, this one is {ours!r}. "
            f"Give each app a name of its own with ha_beat_cluster; if this is the same app under a new name, delete "
            f"the field m:fingerprint of the key {{ha-beat:{cluster}}}:ledger"
        )


class NewerSchema(LeadershipForbidden):
    """The cluster's records were written by newer software."""

    def __init__(self, cluster: str, ours: int, theirs: int) -> None:
        super().__init__(
            f"the records of the cluster {cluster!r} have schema {theirs}, and this version of ha_beat knows {ours}: "
            f"upgrade this replica"
        )
