"""Runner of the package's Lua scripts."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import redis
from redis import exceptions as redis_errors

from ha_beat.store.connections import WatchedClient
from ha_beat.store.redis_errors import as_store_error, line_in_script

#: Lets a script run on a server that is out of memory. Redis before 7 does not know this line.
_ALTHOUGH_FULL = "#!lua flags=allow-oom\n"

#: Lets a script run on a server that refuses writes. Redis before 7 judges each command of a script.
_READ_ONLY = "#!lua flags=no-writes\n"

#: A command, and its subcommand in capitals.
_COMMAND = re.compile(r"redis\.p?call\('([A-Z]+)'(?:, '([A-Z]+)')?")


@cache
def _source(name: str, room: str = "ha_beat.store") -> str:
    names = ["prelude", name] if room == "ha_beat.store" else [name]
    return "".join((files(room) / "lua" / f"{each}.lua").read_text("utf-8") for each in names)


def source_of(name: str, room: str) -> str:
    """Return the source of a script of another room, without this room's helpers."""
    return _source(name, room)


class Script:
    """Script of the folder ``lua``, called by its hash.

    Raises:
        StoreUnavailable: no answer came, so it is unknown whether the script ran.
        StoreRefused: the server answered with an error.
    """

    def __init__(self, name: str, *, although_full: bool = False, read_only: bool = False) -> None:
        self.name = name
        source = _source(name)
        header = _READ_ONLY if read_only else _ALTHOUGH_FULL if although_full else ""
        self._sources = [header + source, source] if header else [source]  # guard: lease-although-full
        self._registered: Any = None

    def __call__(
        self,
        client: redis.Redis,
        keys: Sequence[str],
        args: Sequence[Any],
        meanwhile: Callable[[], None] | None = None,
    ) -> Any:
        """Run the script and return its answer.

        ``meanwhile`` must not raise. It is called while Redis works, unless the script has to be loaded first.
        """
        try:
            return self._run(client, keys, args, meanwhile)
        except (redis_errors.RedisError, OSError) as exc:
            raise as_store_error(exc, self._command_at(exc)) from exc

    @property
    def sha(self) -> str:
        """Return the hash by which the server knows the script, after the first call."""
        return str(self._registered.sha)

    def _command_at(self, exc: Exception) -> str:
        """Return the command that failed, or ``""``. Redis reports only the line of the script."""
        line = line_in_script(exc)
        lines = self._sources[0].splitlines()
        if line is None or not 0 < line <= len(lines):
            return ""
        found = _COMMAND.search(lines[line - 1])
        return " ".join(filter(None, found.groups())) if found else ""

    def _run(
        self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any], meanwhile: Callable[[], None] | None
    ) -> Any:
        while True:
            if self._registered is None:
                self._registered = client.register_script(self._sources[0])
            try:
                if meanwhile is not None and isinstance(client, WatchedClient):
                    return client.execute_meanwhile(meanwhile, "EVALSHA", self.sha, len(keys), *keys, *args)
                return self._registered(keys=keys, args=args, client=client)
            except redis_errors.NoScriptError:
                # Another client has flushed the scripts since this one was loaded.
                return self._loaded_and_run(client, keys, args)
            except redis_errors.ResponseError as exc:
                if len(self._sources) == 1 or "near '#'" not in str(exc):
                    raise
                del self._sources[0]
                self._registered = None

    def _loaded_and_run(self, client: redis.Redis, keys: Sequence[str], args: Sequence[Any]) -> Any:
        """Load and call the script in one packet: no other client can flush it in between."""
        with client.pipeline(transaction=False) as together:
            together.script_load(self._sources[0])
            together.evalsha(self._registered.sha, len(keys), *keys, *args)
            answer = together.execute(raise_on_error=False)[-1]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Poll:
    """Script that only reads, and is called often. Raises like :class:`Script`."""

    def __init__(self, name: str) -> None:
        self._script = Script(name)
        self._packed: tuple[Sequence[str], Sequence[str], bytes] | None = None

    def __call__(self, client: redis.Redis, keys: Sequence[str], args: Sequence[str]) -> Any:
        if self._packed is not None and isinstance(client, WatchedClient):
            if self._packed[:2] != (keys, args):
                self._packed = self._pack(keys, args)
            try:
                return client.read_again(self._packed[2])
            except redis_errors.TimeoutError as exc:
                raise as_store_error(exc) from exc
            except (redis_errors.RedisError, OSError):
                pass  # The ordinary call below connects again and repeats the read.
        answer = self._script(client, keys, args)
        self._packed = self._pack(keys, args)
        return answer

    def _pack(self, keys: Sequence[str], args: Sequence[str]) -> tuple[Sequence[str], Sequence[str], bytes]:
        return keys, args, packed("EVALSHA", self._script.sha, str(len(keys)), *keys, *args)


def packed(*words: str) -> bytes:
    """Return a command as it is sent to Redis."""
    encoded = [word.encode() for word in words]
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in encoded)


def text(value: Any) -> str:
    """Return the text of a reply. Bytes that are no UTF-8 are replaced."""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)


def pairs(flat: Sequence[bytes | str]) -> dict[str, str]:
    """Return a hash from the flat list in which a script returns it."""
    values = [text(item) for item in flat]
    return dict(zip(values[::2], values[1::2], strict=True))


def whole(value: Any) -> int:
    """Return a whole number as the scripts write it, or 0 for anything else. The scripts read numbers alike."""
    digits = text(value) if value is not None else ""
    return int(digits) if digits.isascii() and digits.isdecimal() and len(digits) <= 15 else 0
