"""Exceptions of this package, under one root."""

from __future__ import annotations

from typing import ClassVar

from ha_beat.reasons import ForbiddenReason


class HaBeatError(Exception):
    """Root of the exceptions that this package raises."""


class ConfigurationError(HaBeatError):
    """Invalid settings. The message has one line for each fault, and no password."""


class StoreError(HaBeatError):
    """Failure of a command to Redis or the broker.

    ``same_for_all``: the server is at fault, so another replica would get the same error.
    """

    same_for_all = False


class StoreUnavailable(StoreError):
    """Command without an answer. If ``acted`` is False, it was not executed; otherwise that is unknown."""

    def __init__(self, message: str, *, acted: bool = True) -> None:
        super().__init__(message)
        self.acted = acted

    @classmethod
    def not_acted(cls, cause: StoreError) -> StoreUnavailable:
        """Return the same failure of a command that was certainly not executed."""
        error = cls(str(cause), acted=False)
        error.same_for_all = cause.same_for_all
        return error


class StoreRefused(StoreError):
    """Command that Redis answered with an error and did not execute (``NOPERM``, ``OOM``, ``READONLY``, …).

    ``unexplained``: the error has no code that points to a fault of Redis itself. ``one_key``: it may concern the keys
    of this command only.
    """

    def __init__(self, message: str, *, unexplained: bool = False, one_key: bool = False) -> None:
        super().__init__(message)
        self.unexplained = unexplained
        self.one_key = one_key


class LeadershipForbidden(HaBeatError):
    """Reason why this replica must not lead this cluster. Waiting does not help."""

    reason: ClassVar[ForbiddenReason]


class ForeignApp(LeadershipForbidden):
    """Cluster name that another app uses."""

    reason = ForbiddenReason.OTHER_APP

    def __init__(self, cluster: str, ours: str, theirs: str) -> None:
        super().__init__(
            f"the cluster name {cluster!r} belongs to another app: its ledger says {theirs!r}, this one is {ours!r}. "
            f"Give each app its own name with ha_beat_cluster; if this is the same app under a new name, delete "
            f"the field m:fingerprint of the key {{ha-beat:{cluster}}}:ledger"
        )


class NewerSchema(LeadershipForbidden):
    """Records that a newer version of this package wrote."""

    reason = ForbiddenReason.NEWER_SCHEMA

    def __init__(self, cluster: str, ours: int, theirs: int) -> None:
        super().__init__(
            f"the records of the cluster {cluster!r} have schema {theirs}, and this version of ha_beat knows {ours}: "
            f"upgrade this replica"
        )
