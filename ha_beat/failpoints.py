"""Failpoints: named places where a test can stop, kill or delay a replica. Without a test they do nothing."""

from __future__ import annotations

from collections.abc import Callable

_hooks: dict[str, Callable[[], None]] = {}


def reach(name: str) -> None:
    """Run the hook of this failpoint, if a test has set one."""
    if _hooks:
        hook = _hooks.get(name)
        if hook is not None:
            hook()


def set_hook(name: str, hook: Callable[[], None]) -> None:
    """Set the function that runs at this failpoint."""
    _hooks[name] = hook
