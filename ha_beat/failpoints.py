"""Named places in the dispatch where a test can stop, kill or delay a replica. Without a test they do nothing."""

from __future__ import annotations

from collections.abc import Callable

_hooks: dict[str, Callable[[], None]] = {}


def reach(name: str) -> None:
    """The program has come to this place."""
    if _hooks:
        hook = _hooks.get(name)
        if hook is not None:
            hook()


def set_hook(name: str, hook: Callable[[], None]) -> None:
    """Have something happen there."""
    _hooks[name] = hook
