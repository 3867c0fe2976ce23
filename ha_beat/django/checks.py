"""System checks: ``manage.py check`` finds what would keep the cluster from working."""

from __future__ import annotations


def register() -> None:
    """Register them."""
