"""Consumer of a history: it records each message once and in order, also while Redis fails."""

import json
import time
from typing import Any

import pytest
from kombu import Connection, Queue

from tests.faults.history import AmqpQueueConsumer, History, RedisQueueConsumer
from tests.faults.proxy import TcpProxy
from tests.support.servers import RabbitMQ, RedisServer, need, wait_for


def raw_message(number: int) -> str:
    """Return a Celery message as kombu writes it to a list, with the parts that the history reads."""
    ours = {"cluster": "c", "entry": "e", "scheduled_at": f"2030-01-01T00:00:{number % 60:02}+00:00", "epoch": 1}
    headers: dict[str, Any] = {"task": "tick", "id": f"id-{number}", "ha_beat": {**ours, "run_count": number}}
    return json.dumps({"body": "", "headers": headers, "properties": {}})


def enqueue(server: RedisServer, numbers: range) -> None:
    pipeline = server.admin.pipeline(transaction=False)
    for number in numbers:
        pipeline.lpush("celery", raw_message(number))
    pipeline.execute()


def ids(history: History) -> list[str]:
    return [message["id"] for message in history.messages()]


def test_thousands_of_messages_are_recorded_in_order(shared_redis: RedisServer):
    """10,000 messages are recorded in less time than stock beat needs to send them."""
    history = History()
    enqueue(shared_redis, range(10_000))
    begun = time.monotonic()
    with RedisQueueConsumer(history, shared_redis.url):
        history.wait_for_messages(10_000, timeout=60)
    assert time.monotonic() - begun < 10
    assert ids(history) == [f"id-{number}" for number in range(10_000)]
    first = history.messages("e")[0]
    assert (first["entry"], first["epoch"], first["run_count"], first["cluster"]) == ("e", 1, 0, "c")


def test_lost_replies_and_cuts_lose_and_repeat_no_message(shared_redis: RedisServer):
    """The consumer's connection is cut after the server has removed the messages from the queue."""
    history = History()
    with TcpProxy(shared_redis.address) as proxy, RedisQueueConsumer(history, proxy.url(shared_redis.url)):
        for round_number in range(5):
            cut = proxy.cut_reply_after(b"EVALSHA")
            enqueue(shared_redis, range(round_number * 100, round_number * 100 + 100))
            cut.wait()
            proxy.cut()
        history.wait_for_messages(500)
        time.sleep(0.1)
    assert ids(history) == [f"id-{number}" for number in range(500)]
    assert [event for event in history.events("note") if event["note"] == "consumer"]


def test_consumer_reconnects_after_a_restart_of_redis():
    history = History()
    server = need(lambda: RedisServer(appendonly=True, extra_args=("--appendfsync", "always")))
    with server, RedisQueueConsumer(history, server.url):
        enqueue(server, range(100))
        history.wait_for_messages(50)
        server.kill()
        server.start()
        enqueue(server, range(100, 200))
        history.wait_for_messages(200)
        time.sleep(0.1)
    assert ids(history) == [f"id-{number}" for number in range(200)]


@pytest.mark.slow
def test_restart_of_rabbitmq_repeats_no_message():
    history = History()
    with need(RabbitMQ) as broker, AmqpQueueConsumer(history, broker.url):

        def publish(number: int) -> bool:
            headers = json.loads(raw_message(number))["headers"]
            with Connection(broker.url) as connection:
                queue = Queue("celery", exchange="celery", routing_key="celery")
                connection.Producer().publish(
                    {}, routing_key="celery", exchange="celery", declare=[queue], headers=headers
                )
            return True

        for number in range(20):
            publish(number)
        history.wait_for_messages(20)
        broker.restart()
        wait_for(lambda: publish(20), 20, "a publish after the restart", 0.2)
        history.wait_for_messages(21, timeout=20)
    assert ids(history) == [f"id-{number}" for number in range(21)]
