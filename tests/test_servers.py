"""Servers of the tests: they work and leave nothing behind."""

import os
import socket
from pathlib import Path

import pytest
import redis
from kombu import Connection

from tests.support.servers import (
    PartMissing,
    Postgres,
    RabbitMQ,
    RedisServer,
    ServerProcess,
    free_port,
    need,
    wait_for,
)


def test_redis_keeps_or_loses_its_data_at_a_restart(redis_server: RedisServer):
    redis_server.admin.set("a", "1")
    redis_server.restart(persist=True)
    assert redis_server.admin.get("a") == "1"
    redis_server.restart(persist=False)
    assert redis_server.admin.get("a") is None


def test_appendonly_survives_a_kill():
    with need(lambda: RedisServer(appendonly=True, extra_args=("--appendfsync", "always"))) as server:
        server.admin.set("a", "1")
        server.kill()
        assert not server.alive
        server.start()
        assert server.admin.get("a") == "1"


def test_paused_redis_answers_nothing_until_resumed(redis_server: RedisServer):
    redis_server.pause()
    with pytest.raises(redis.TimeoutError), redis_server.client(socket_timeout=0.2) as client:
        client.ping()
    redis_server.resume()
    assert redis_server.admin.ping()


def test_server_that_ends_at_its_start_shows_its_log():
    with pytest.raises(PartMissing, match="nonsense"), RedisServer(extra_args=("--nonsense", "1")):
        pass


def test_missing_part_skips_here_and_fails_in_ci(monkeypatch: pytest.MonkeyPatch):
    def missing():
        raise PartMissing("no such server")

    monkeypatch.setenv("CI", "")
    with pytest.raises(pytest.skip.Exception, match="no such server"):
        need(missing)
    monkeypatch.setenv("CI", "true")
    with pytest.raises(pytest.fail.Exception, match="no such server"):
        need(missing)


def test_stop_ends_the_whole_group_and_frees_the_port(tmp_path: Path):
    child = tmp_path / "child"
    process = ServerProcess(["sh", "-c", f"sleep 100 & echo $! > {child}; wait"], tmp_path / "log")
    wait_for(lambda: child.exists() and child.read_text().strip(), what="the child's pid")
    process.kill()
    wait_for(lambda: not _runs(int(child.read_text())), what="the child's end")
    with need(RedisServer) as server:
        port = server.port
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        probe.bind(("127.0.0.1", port))
    assert not server.directory.exists()


def _runs(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def test_each_free_port_is_returned_once():
    ports = [free_port() for _ in range(50)]
    assert len(set(ports)) == 50


@pytest.mark.slow
def test_rabbitmq_takes_messages_and_keeps_them_over_a_restart():
    with need(RabbitMQ) as broker:
        epmd = broker._epmd
        with Connection(broker.url) as connection:
            connection.SimpleQueue("durable").put({"a": 1})
        broker.restart()
        with Connection(broker.url) as connection:
            message = connection.SimpleQueue("durable").get(timeout=5)
            assert message.payload == {"a": 1}
            message.ack()
        pid = broker.pid
    assert not _runs(pid)
    assert epmd
    assert not _runs(epmd.pid)


@pytest.mark.slow
def test_postgres_answers_and_is_gone_afterwards():
    with need(Postgres) as server:
        assert server.answers()
        server.restart()
        assert server.answers()
        pid = server.pid
        assert os.getpgid(pid) == pid
    assert not _runs(pid)
