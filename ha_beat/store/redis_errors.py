"""Mapping of redis-py's errors to this package's errors, with a message for people."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from redis import exceptions as redis_errors

from ha_beat.errors import StoreError, StoreRefused, StoreUnavailable
from ha_beat.exception_text import without_secrets

#: Message by the code with which Redis' error starts.
_IN_WORDS = {
    "NOAUTH": "Redis asks for a password, and none was given",
    "WRONGPASS": "Redis refuses the user name or the password",
    "NOPERM": "the Redis user lacks a right",
    "READONLY": "this Redis is a read-only replica, not the primary",
    "OOM": "Redis is out of memory and refuses writes",
    "LOADING": "Redis is still loading its data",
    "MISCONF": "Redis refuses writes while it can't save its data to disk",
    "MASTERDOWN": "this Redis is a replica that has lost its primary",
    "NOREPLICAS": "Redis refuses writes while too few of its replicas are in sync",
    "BUSY": "Redis is busy with a script",
    "CLUSTERDOWN": "the Redis Cluster does not serve these keys",
    "MOVED": "these keys are on another node of the Redis Cluster",
    "ASK": "the Redis Cluster is moving these keys",
    "TRYAGAIN": "the Redis Cluster is moving these keys",
}

#: redis-py removes the code from errors that have their own class. Which ones do depends on its version.
_CODES = {
    "NoPermissionError": "NOPERM",
    "ReadOnlyError": "READONLY",
    "OutOfMemoryError": "OOM",
    "BusyLoadingError": "LOADING",
    "MasterDownError": "MASTERDOWN",
    "ClusterDownError": "CLUSTERDOWN",
    "MovedError": "MOVED",
    "AskError": "ASK",
    "TryAgainError": "TRYAGAIN",
}

#: Redis before 7 puts the code inside the text if the error arose in a script.
_CODE = re.compile(rf"(?:^|[\s:-])({'|'.join(_IN_WORDS)})(?=\s|$)")

_MOVED = re.compile(r"\b\d+ (\S*):(\d+)(?:\s|$)")

#: Text that Redis adds about the place in the script. Before Redis 7 it stands in front and differs for each script.
#: Valkey leaves out the hash.
_IN_SCRIPT = re.compile(
    r"\s*script: (?:[0-9a-f]{40}, )?on @\w+:\d+\.?$"
    r"|^Error running script \(call to f_[0-9a-f]{40}\): (?:@\w+: ?\d+: ?)*-?"
)

_REFUSED_COMMAND = re.compile(r"run the '(\S+)' command")
_PIPELINED = re.compile(r"Command # \d+ \((\S+ \S+)")

_UNKNOWN_COMMAND = re.compile(r"unknown command ['`](\w+)")

#: Codes after which the connections must be opened again: the server is not the primary, not the node of this key, or
#: has lost the authentication.
STALE = frozenset({"READONLY", "MOVED", "MASTERDOWN", "CLUSTERDOWN", "NOAUTH"})

#: Codes of errors that may concern one key only. An error without a code is a key of another type, for example.
_OF_ONE_KEY = frozenset({"", "NOPERM"})

#: Codes of errors that every replica gets.
_OF_THE_SERVER = frozenset({"OOM", "MISCONF", "NOREPLICAS", "BUSY", "LOADING"})

#: Codes of errors that Redis answers before it executes anything.
_DID_NOTHING = frozenset({"NOAUTH", "WRONGPASS", "LOADING", "MASTERDOWN"})

#: Redis' texts instead of NOPERM for a command of a script: up to 7.0, and later.
_NO_RIGHT_IN_SCRIPT = re.compile("The user executing the script can't|ACL failure in script")


def code_of(exc: BaseException) -> str:
    """Return the code of an error of Redis, or ``""`` for other errors, such as a refused connection."""
    code = _CODES.get(type(exc).__name__)
    if code is not None:
        return code
    said = str(exc)
    if isinstance(exc, redis_errors.AuthenticationError):
        return "NOAUTH" if "uthentication required" in said or "already authenticated" in said else "WRONGPASS"
    if _NO_RIGHT_IN_SCRIPT.search(said):
        return "NOPERM"
    if isinstance(exc, redis_errors.ResponseError):
        found = _CODE.search(said)
        return found[1] if found else ""
    # redis-py's Sentinel connections replace the error of a demoted primary by this text.
    return "READONLY" if "previous master is now a slave" in said else ""


def in_words(exc: BaseException, command: str = "") -> str:
    """Return one line that names the fault. ``command`` is the failed command, with its key, if it is known."""
    return without_secrets(_in_words(exc, command))


def _in_words(exc: BaseException, command: str) -> str:
    code = code_of(exc)
    said = _IN_SCRIPT.sub("", " ".join(str(exc).split()))
    if code == "NOPERM":
        said += f": {command}" * bool(command) + _missing_rule(said, command)
    if code:
        detail = f": {said.removeprefix(code).strip()}" if said and code not in {said, "NOAUTH"} else ""
        return f"{_IN_WORDS[code]} ({code}{detail})"
    unknown = _UNKNOWN_COMMAND.search(said) if isinstance(exc, redis_errors.ResponseError) else None
    if unknown:
        # The rest of the text is the beginning of the command, which may be a script.
        return f"this Redis does not have the command {unknown[1]}, or has renamed it (rename-command)"
    return f"{type(exc).__name__}: {said}" if said else type(exc).__name__


def _missing_rule(said: str, command: str) -> str:
    """Return the rule that the ACL lacks, for a command or for the key in ``command``; empty if it is unknown."""
    refused = _REFUSED_COMMAND.search(said)
    if refused:
        return f"; its ACL needs +{refused[1]}"
    pipelined = _PIPELINED.search(said)
    _, _, key = (pipelined[1] if pipelined else command).partition(" ")
    if not key or "script" in said:
        return ""
    return f"; its ACL needs {'&' if 'channel' in said else '~'}{key}"


def as_store_error(exc: Exception, command: str = "") -> StoreError:
    """Return an error as this package's: refused if Redis answered with an error, unavailable if no answer came."""
    code, words = code_of(exc), in_words(exc, command)
    did_nothing = code in _DID_NOTHING or isinstance(exc, redis_errors.MaxConnectionsError)
    error: StoreError
    if did_nothing or isinstance(exc, redis_errors.ConnectionError | redis_errors.TimeoutError | OSError):
        error = StoreUnavailable(words, acted=not did_nothing)
    else:
        error = StoreRefused(words, unexplained=not code, one_key=code in _OF_ONE_KEY)
    error.same_for_all = code in _OF_THE_SERVER
    return error


@contextmanager
def mapped_redis_errors() -> Iterator[None]:
    """Replace errors of redis-py and the operating system by this package's.

    Raises:
        StoreUnavailable: no answer came, so the outcome is unknown.
        StoreRefused: Redis answered with an error and did nothing.
    """
    try:
        yield
    except (redis_errors.RedisError, OSError) as exc:
        raise as_store_error(exc) from exc


def line_in_script(exc: BaseException) -> int | None:
    """Return the line of the script, counted from 1, at which a command failed."""
    found = re.search(r"@user_script: ?(\d+)", str(exc))
    return int(found[1]) if found else None


def moved_to(exc: BaseException) -> tuple[str, int] | None:
    """Return the address to which a node of a Redis Cluster redirects. The host is ``""`` if it is the same."""
    if code_of(exc) != "MOVED":
        return None
    found = _MOVED.search(str(exc))
    return (found[1], int(found[2])) if found else None
