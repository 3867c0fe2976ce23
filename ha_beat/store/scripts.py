"""Runs the package's Lua scripts, and maps what can go wrong to this package's errors, once."""

from __future__ import annotations

import re
from collections.abc import Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis import exceptions as redis_errors

from ha_beat.store.redis_errors import as_store_error, line_in_script

#: Lets a script run on a server that is out of memory; servers before Redis 7 don't know the line.
_ALTHOUGH_FULL = "#!lua flags=allow-oom\n"

#: A command, and in capitals its subcommand.
_COMMAND = re.compile(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?")


@cache
def _source(name: str) -> str:
    folder = files("ha_beat.store") / "lua"
    return (folder / "prelude.lua").read_text("utf-8") + (folder / f"{name}.lua").read_text("utf-8")


class Script:
    """One script of the folder ``lua``, sent by its hash.

    Raises:
        StoreUnavailable: no answer came: whether the script ran is unknown.
        StoreRefused: the server answered with an error; it did nothing, or said what it did.
    """

    def __init__(self, name: str, *, although_full: bool = False) -> None:
        self.name = name
        source = _source(name)
        self._sources = [_ALTHOUGH_FULL + source, source] if although_full else [source]  # guard: lease-although-full
        self._registered: Any = None

    def __call__(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        try:
            return self._run(client, keys, args)
        except (redis_errors.RedisError, OSError) as exc:
            raise as_store_error(exc, self._command_at(exc)) from exc

    def _command_at(self, exc: Exception) -> str:
        """Which command failed: Redis tells only the line of the script."""
        line = line_in_script(exc)
        lines = self._sources[0].splitlines()
        if line is None or not 0 < line <= len(lines):
            return ""
        found = _COMMAND.search(lines[line - 1])
        return " ".join(filter(None, found.groups())) if found else ""

    def _run(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        while True:
            if self._registered is None:
                self._registered = client.register_script(self._sources[0])
            try:
                return self._registered(keys=keys, args=args, client=client)
            except redis_errors.NoScriptError:
                # Loaded, and flushed by somebody else before it was called.
                return self._loaded_and_run(client, keys, args)
            except redis_errors.ResponseError as exc:
                if len(self._sources) == 1 or "near '#'" not in str(exc):
                    raise
                del self._sources[0]
                self._registered = None

    def _loaded_and_run(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Load and call it in one packet, between whose commands no other client's come."""
        with client.pipeline(transaction=False) as together:
            together.script_load(self._sources[0])
            together.evalsha(self._registered.sha, len(keys), *keys, *args)
            answer = together.execute(raise_on_error=False)[-1]
        if isinstance(answer, Exception):
            raise answer
        return answer


def text(value: Any) -> str:
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def whole(value: Any) -> int:
    """A whole number as the scripts write them; 0 for anything else, as in the scripts."""
    digits = text(value) if value is not None else ""
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 15 else 0
