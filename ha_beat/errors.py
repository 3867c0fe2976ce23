"""The exceptions of ha_beat, all under one root."""

from __future__ import annotations


class HaBeatError(Exception):
    """Root of everything that ha_beat raises."""


class ConfigurationError(HaBeatError):
    """Settings that cannot be used. The message has one line for each fault, and never a password."""
