"""Links to Redis under the user's own settings."""

from collections.abc import Callable
from typing import Any

import pytest
import redis
from celery import Celery

from ha_beat.dispatch.brokers.redis_link import BrokerLink
from ha_beat.errors import StoreUnavailable
from ha_beat.store.connections import Link, link_to
from ha_beat.store.scripts import Poll, Script, packed
from tests.support.servers import RedisServer


def by_url(server: RedisServer) -> Link:
    return link_to(server.url, {"max_connections": 1}, 2.5, "key")


def by_broker(server: RedisServer) -> Link:
    app = Celery("links", broker=server.url, set_as_current=False)
    app.conf.broker_transport_options = {"max_connections": 1}
    return BrokerLink(app, 2.5)


@pytest.mark.parametrize("make", [by_url, by_broker])
def test_connection_limit_of_one_leaves_a_second_for_presence(
    make: Callable[[RedisServer], Link], shared_redis: RedisServer
):
    """Presence holds its connection all the time, and renewals need another one."""
    client = make(shared_redis).client()
    listener = client.pubsub()
    listener.subscribe("channel")
    assert client.ping()
    listener.close()


@pytest.mark.parametrize(("query", "options"), [("", {"decode_responses": True}), ("?decode_responses=1", {})])
def test_bytes_that_are_not_text_are_readable(query: str, options: Any, shared_redis: RedisServer):
    """A corrupt record must not make the whole reply unreadable."""
    shared_redis.client().hset("hash", mapping={"good": "1", "bad": b"\xff"})
    link = link_to(shared_redis.url + query, options, 2.5, "key")
    assert link.client().hgetall("hash") == {b"good": b"1", b"bad": b"\xff"}


class Flushed(redis.Redis):
    """Client that empties the script cache after each of its commands."""

    def execute_command(self, *args: Any, **options: Any) -> Any:
        try:
            return super().execute_command(*args, **options)
        finally:
            if not args[0].startswith("SCRIPT FLUSH"):
                self.script_flush()


def test_script_runs_while_another_client_empties_the_cache(shared_redis: RedisServer):
    """Even between load and call. Otherwise a leader would lose the lease, or an entry would count as faulty."""
    script = Script("observe")
    with Flushed.from_url(shared_redis.url) as client:
        for _ in range(2):
            assert len(script(client, ["nothing"], [""])) == 5


def polling(server: RedisServer, timeout: float) -> tuple[Any, Callable[[], Any]]:
    """Return a client that keeps a connection for a poll, and the poll."""
    client, poll = link_to(server.url, {}, timeout, "key").client(), Poll("observe")

    def read() -> Any:
        return poll(client, ["nothing"], [""])[4]

    assert read() == read()
    return client, read


def test_repeated_read_takes_up_a_lost_connection_and_lost_scripts(shared_redis: RedisServer):
    """It recovers like an ordinary call, and then returns its connection to the pool."""
    (client, read), admin = polling(shared_redis, 2.5), shared_redis.admin
    digest, own = read(), client.client_id()
    admin.client_kill_filter(_id=own)
    assert read() == digest
    admin.script_flush()
    assert read() == digest
    own = client.client_id()
    assert {read(), read()} == {digest}
    assert client.client_id() == own


def test_command_during_a_repeated_read_has_its_own_answer(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch):
    """A signal handler may release the lease while the interrupted thread reads it through the same link."""
    client, read = polling(shared_redis, 2.5)
    first, waiting, in_time = read(), redis.Connection.read_response, []

    def interrupted(*args: Any, **options: Any) -> Any:
        if not in_time:
            in_time.append(True)
            assert client.echo("mine") == b"mine"
        return waiting(*args, **options)

    monkeypatch.setattr(redis.Connection, "read_response", interrupted)
    assert read() == first == read()
    assert in_time


def test_interrupted_read_leaves_no_reply_behind(shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch):
    client, read = polling(shared_redis, 2.5)
    first = read()

    def fail(*_: Any, **__: Any) -> None:
        raise SystemExit

    with monkeypatch.context() as patch, pytest.raises(SystemExit):
        patch.setattr(redis.Connection, "read_response", fail)
        client.read_again(packed("ECHO", "late"))
    assert read() == first == read()


def test_command_with_work_before_its_answer_has_its_own_answer(shared_redis: RedisServer):
    """Even if the work uses the same client or is interrupted, or the server refuses or ends the connection."""
    client: Any = link_to(shared_redis.url, {}, 2.5, "key").client()

    def echo(meanwhile: Callable[[], object], text: str) -> Any:
        return client.execute_meanwhile(meanwhile, "ECHO", text)

    def interrupt() -> None:
        raise SystemExit

    between: list[Any] = []
    assert echo(lambda: between.append(client.echo("other")), "mine") == b"mine"
    with pytest.raises(SystemExit):
        echo(interrupt, "late")
    assert echo(lambda: None, "next") == client.echo("next") == b"next"
    with pytest.raises(redis.ResponseError):
        client.execute_meanwhile(lambda: None, "NONSENSE")
    assert echo(lambda: None, "next") == b"next"
    shared_redis.admin.client_kill_filter(_id=client.client_id())
    assert echo(lambda: None, "again") == b"again"
    with pytest.raises(redis.ConnectionError):
        # Without an answer, because one may arrive before the end of the connection.
        client.execute_meanwhile(
            lambda: shared_redis.admin.client_kill_filter(skipme=True, _type="normal"), "BLPOP", "none", 0
        )
    assert echo(lambda: None, "next") == b"next"
    with pytest.raises(redis.ConnectionError):
        # As after a command that has found the wrong server.
        echo(client.connection_pool.disconnect, "lost")
    assert echo(lambda: None, "next") == b"next"
    assert between == [b"other"]


@pytest.mark.parametrize(
    "command",
    [lambda client: client.execute_meanwhile(lambda: None, "PING"), lambda client: client.read_again(b"PING")],
)
def test_broker_that_cannot_be_connected_to_is_looked_for_again(
    command: Callable[[Any], Any], shared_redis: RedisServer
):
    link = BrokerLink(Celery("links", broker=shared_redis.url, set_as_current=False), 2.5, failover=True)
    client = link.client()
    client.connection_pool.connection_kwargs["port"] = 1
    client.connection_pool.disconnect()
    client.connection_pool.reset()
    with pytest.raises(redis.ConnectionError):
        command(client)
    assert link.client() is not client
    assert link.client().ping()


@pytest.mark.parametrize("again", [True, False])
def test_reply_that_is_late_through_sentinel_is_not_the_next(
    again: bool, shared_redis: RedisServer, monkeypatch: pytest.MonkeyPatch
):
    """redis-py leaves a connection to the primary that Sentinel names open after a timeout."""
    client: Any = link_to(shared_redis.url, {}, 2.5, "key").client()

    def send(*words: str) -> Any:
        return client.read_again(packed(*words)) if again else client.execute_meanwhile(lambda: None, *words)

    def fail(*_: Any, **__: Any) -> None:
        raise redis.TimeoutError

    assert send("ECHO", "first") == b"first"
    with monkeypatch.context() as patch, pytest.raises(redis.TimeoutError):
        patch.setattr(redis.Connection, "read_response", fail)
        send("BLPOP", "none", "0")
    assert send("ECHO", "next") == client.echo("next") == b"next"


def test_late_reply_to_a_repeated_read_is_not_the_next_answer(shared_redis: RedisServer):
    _, read = polling(shared_redis, 1.0)
    first = read()
    shared_redis.pause()
    with pytest.raises(StoreUnavailable):
        read()
    shared_redis.resume()
    shared_redis.admin.ping()
    assert read() == first == read()
