"""Each fault of the proxy has its effect on a real Redis client and server."""

import socket
import threading
import time
from collections.abc import Iterator

import pytest
import redis
from redis.backoff import NoBackoff
from redis.retry import Retry

from tests.faults.proxy import TcpProxy, containing
from tests.support.servers import RedisServer, wait_for


@pytest.fixture
def proxy(shared_redis: RedisServer) -> Iterator[TcpProxy]:
    with TcpProxy(shared_redis.address) as made:
        yield made


@pytest.fixture
def client(proxy: TcpProxy, shared_redis: RedisServer) -> Iterator[redis.Redis]:
    """Connect a client through the proxy that tries each command once."""
    made = client_through(proxy, shared_redis)
    yield made
    made.close()


def client_through(proxy: TcpProxy, server: RedisServer, timeout: float = 5.0) -> redis.Redis:
    return redis.Redis.from_url(
        proxy.url(server.url), socket_timeout=timeout, retry=Retry(NoBackoff(), 0), decode_responses=True
    )


def test_bytes_pass_both_ways_and_are_counted(proxy: TcpProxy, client: redis.Redis):
    large = "x" * 500_000
    client.set("large", large)
    assert client.get("large") == large
    assert proxy.counters["request bytes"] > 500_000
    assert proxy.counters["reply bytes"] > 500_000
    assert proxy.connections == proxy.counters["connections"] == 1


def test_cut_resets_open_connections_and_lets_new_ones_in(proxy: TcpProxy, client: redis.Redis):
    with socket.create_connection(proxy.address) as raw:
        raw.sendall(b"PING\r\n")
        assert raw.recv(100) == b"+PONG\r\n"
        assert proxy.cut() == 1
        with pytest.raises(ConnectionResetError):
            raw.recv(100)
    assert client.ping()


def test_paused_connection_can_be_cut(proxy: TcpProxy, client: redis.Redis):
    client.ping()
    proxy.pause()
    proxy.cut()
    wait_for(lambda: proxy.connections == 0, what="the end of the cut connection")
    proxy.heal()
    assert client.ping()


def test_refused_until_accepted_again(proxy: TcpProxy, client: redis.Redis):
    client.ping()
    proxy.refuse()
    for _ in range(3):
        with pytest.raises(redis.ConnectionError):
            client.ping()
    proxy.accept()
    assert client.ping()


def test_blackholed_requests_do_not_reach_the_server(proxy: TcpProxy, shared_redis: RedisServer):
    impatient = client_through(proxy, shared_redis, timeout=1.0)
    impatient.ping()
    proxy.blackhole("request")
    with pytest.raises(redis.TimeoutError):
        impatient.incr("count")
    proxy.heal()
    assert impatient.ping()
    assert shared_redis.admin.get("count") is None
    assert proxy.counters["request bytes lost"] > 0


def test_blackholed_replies_leave_the_server_having_acted(proxy: TcpProxy, shared_redis: RedisServer):
    impatient = client_through(proxy, shared_redis, timeout=1.0)
    impatient.ping()
    proxy.blackhole("reply")
    with pytest.raises(redis.TimeoutError):
        impatient.incr("count")
    assert shared_redis.admin.get("count") == "1"


def test_paused_bytes_arrive_after_the_pause(proxy: TcpProxy, client: redis.Redis, shared_redis: RedisServer):
    client.ping()
    proxy.pause()
    answers: list[object] = []
    asking = threading.Thread(target=lambda: answers.append(client.incr("count")))
    asking.start()
    asking.join(0.3)
    assert asking.is_alive()
    assert shared_redis.admin.get("count") is None
    proxy.resume()
    asking.join(5)
    assert answers == [1]


def test_delay_shifts_each_way_by_its_seconds(proxy: TcpProxy, client: redis.Redis):
    client.ping()
    proxy.delay(0.2)
    begun = time.monotonic()
    client.ping()
    assert time.monotonic() - begun >= 0.4
    proxy.heal()
    assert client.ping()


def test_reply_is_lost_after_the_server_has_acted(proxy: TcpProxy, client: redis.Redis, shared_redis: RedisServer):
    other = client_through(proxy, shared_redis)
    client.ping()
    cut = proxy.cut_reply_after(containing(b"INCR", b"count"))
    assert other.incr("unrelated") == 1
    with pytest.raises(redis.ConnectionError):
        client.incr("count")
    cut.wait()
    assert shared_redis.admin.get("count") == "1"
    assert client.incr("count") == 2


def test_reply_to_the_last_command_of_a_pipeline_is_lost_too(
    proxy: TcpProxy, client: redis.Redis, shared_redis: RedisServer
):
    cut = proxy.cut_reply_after(b"the-end")
    pipeline = client.pipeline(transaction=False)
    for number in range(2000):
        pipeline.rpush("list", f"{number:0100}")
    pipeline.rpush("list", "the-end")
    with pytest.raises(redis.ConnectionError):
        pipeline.execute()
    cut.wait()
    assert shared_redis.admin.llen("list") == 2001


def test_script_is_found_by_its_name_in_the_request(proxy: TcpProxy, client: redis.Redis):
    script = client.register_script("return redis.call('INCR', KEYS[1])")
    script(keys=["count"])
    cut = proxy.cut_reply_after(containing(b"EVALSHA", str(script.sha)[:12].encode()))
    with pytest.raises(redis.ConnectionError):
        script(keys=["count"])
    cut.wait()
    assert script(keys=["count"]) == 3


def test_held_request_is_delivered_after_its_client_is_gone(proxy: TcpProxy, shared_redis: RedisServer):
    impatient = client_through(proxy, shared_redis, timeout=1.0)
    impatient.ping()
    held = proxy.hold(containing(b"INCR", b"late"))
    with pytest.raises(redis.TimeoutError):
        impatient.incr("late")
    held.wait()
    impatient.close()
    proxy.cut()
    time.sleep(0.3)
    assert shared_redis.admin.get("late") is None
    held.release()
    wait_for(lambda: shared_redis.admin.get("late") == "1", what="the late command")
    wait_for(lambda: proxy.connections == 0, what="the end of the late connection")


def test_proxy_works_again_after_an_outage_of_the_server(redis_server: RedisServer):
    with TcpProxy(redis_server.address) as proxy:
        client = client_through(proxy, redis_server)
        assert client.ping()
        redis_server.stop()
        for _ in range(2):
            with pytest.raises(redis.ConnectionError):
                client.ping()
        redis_server.start()
        assert client.ping()
        assert proxy.counters["upstream refused"] >= 1


def test_urls_keep_all_but_host_and_port(proxy: TcpProxy):
    port = proxy.port
    assert proxy.url("redis://u:p%40@10.0.0.1:6379/3?x=1") == f"redis://u:p%40@127.0.0.1:{port}/3?x=1"
    assert proxy.url("amqp://guest:guest@localhost:5672//") == f"amqp://guest:guest@127.0.0.1:{port}//"
