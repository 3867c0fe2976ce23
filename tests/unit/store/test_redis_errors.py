"""Error texts of different versions of Redis and redis-py, and their codes."""

import pytest
from redis import exceptions as redis_errors

from ha_beat.errors import StoreRefused, StoreUnavailable
from ha_beat.store.redis_errors import as_store_error, code_of, in_words, moved_to

IN_SCRIPT = "Error running script (call to f_1): @user_script:7: "
NO_RIGHT = "ACL failure in script: User beat has no permissions to run the 'hset' command"
UNKNOWN = "unknown command 'SCRIPT', with args beginning with: 'LOAD'"


@pytest.mark.parametrize(
    ("exc", "code", "words"),
    [
        (redis_errors.ResponseError("MOVED 42 127.0.0.1:7001"), "MOVED", "another node"),
        (redis_errors.MovedError("42 127.0.0.1:7001"), "MOVED", "another node"),
        (redis_errors.ResponseError("MISCONF Redis is configured to save RDB snapshots"), "MISCONF", "save its data"),
        (redis_errors.ResponseError("BUSY Redis is busy running a script."), "BUSY", "busy with a script"),
        (redis_errors.ResponseError(f"{IN_SCRIPT}-OOM command not allowed"), "OOM", "out of memory"),
        (redis_errors.BusyLoadingError("Redis is loading the dataset in memory"), "LOADING", "still loading"),
        (redis_errors.ResponseError("WRONGTYPE Operation against a key"), "", "WRONGTYPE"),
        (redis_errors.ConnectionError("The previous master is now a slave"), "READONLY", "read-only replica"),
        (ConnectionRefusedError("refused"), "", "refused"),
        (redis_errors.ResponseError(f"{NO_RIGHT} script: on @user_script:92."), "NOPERM", "its ACL needs +hset)"),
        *((redis_errors.ResponseError(UNKNOWN.replace("'", quote)), "", "command SCRIPT,") for quote in "'`"),
    ],
)
def test_refusal_has_a_code_and_words(exc: Exception, code: str, words: str) -> None:
    assert code_of(exc) == code
    assert words in in_words(exc)
    assert "\n" not in in_words(exc)
    assert "beginning with" not in in_words(exc)


def test_refusal_of_two_scripts_has_one_text_before_redis_7() -> None:
    """It is logged once, although Redis 6 adds the script's hash."""
    said = "@user_script: 9: -READONLY You can't write."
    told = {
        in_words(redis_errors.ResponseError(f"Error running script (call to f_{sha * 40}): @user_script:9: {said}"))
        for sha in "ab"
    }
    assert told == {"this Redis is a read-only replica, not the primary (READONLY: You can't write.)"}


@pytest.mark.parametrize(
    ("exc", "acted"),
    [
        (redis_errors.ResponseError("NOAUTH Authentication required."), False),
        (redis_errors.BusyLoadingError("loading"), False),
        (redis_errors.TimeoutError("timeout"), True),
    ],
)
def test_command_that_may_have_been_carried_out_is_known(exc: Exception, acted: bool) -> None:
    failure = as_store_error(exc)
    assert (type(failure), failure.acted) == (StoreUnavailable, acted)
    assert isinstance(as_store_error(redis_errors.ReadOnlyError("no")), StoreRefused)


@pytest.mark.parametrize("said", ["MOVED 42 :7001", "42 :7001"])
def test_node_may_name_only_a_port(said: str) -> None:
    """A node can be configured to hide its address."""
    assert moved_to(redis_errors.MovedError(said.removeprefix("MOVED "))) == ("", 7001)
    assert moved_to(redis_errors.ResponseError("MOVED 42 [::1]:7001")) is not None
