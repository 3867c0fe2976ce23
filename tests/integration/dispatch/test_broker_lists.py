"""Lists of brokers whose first server is unreachable."""

import contextlib

import pytest
import redis
from celery import Celery

from ha_beat.celery_app import broker_client, broker_list, ignored_brokers, lease_link, load_settings
from ha_beat.errors import StoreUnavailable
from ha_beat.reasons import PublishOutcome
from ha_beat.scheduler import HAScheduler
from tests.support.schedulers import closing
from tests.support.senders import Sender
from tests.support.servers import RabbitMQ, RedisServer, free_port, need


def app_with(broker: object, **config: object) -> Celery:
    app = Celery("lists", broker=broker, set_as_current=False)
    app.conf.update(config)
    return app


@pytest.mark.parametrize(
    ("broker", "listed"),
    [
        ("redis://a", []),
        ("redis://a;redis://a", []),
        ("redis://:pw@a;redis://b:1/2", ["redis://:***@a", "redis://b:1/2"]),
        (["redis://a", "redis://b"], ["redis://a", "redis://b"]),
        ("sentinel://a:1;sentinel://b:2", []),
        ("amqp://u:pw@a//;amqp://b//", ["amqp://u:***@a//", "amqp://b//"]),
    ],
)
def test_brokers_are_listed_without_secrets(broker: object, listed: list[str]):
    assert broker_list(app_with(broker)) == listed


def test_lease_does_not_move_along_a_list_of_brokers(shared_redis: RedisServer, caplog: pytest.LogCaptureFixture):
    """The start names the servers that are never used."""
    app = app_with(f"redis://127.0.0.1:{free_port()}/0;{shared_redis.url}")
    settings = load_settings(app)
    with pytest.raises(StoreUnavailable):
        lease_link(app, settings).client().ping()
    first, ignored = ignored_brokers(app, settings) or ("", "")
    assert [first, ignored] == app.conf.broker_url.split(";")
    scheduler = HAScheduler(app)
    with closing(scheduler):
        scheduler.tick()
    (logged,) = [vars(r) for r in caplog.records if vars(r).get("action") == "brokers_ignored"]
    assert (logged["used"], logged["ignored"]) == (first, ignored)


def test_list_of_redis_brokers_fails_over_if_the_lease_is_elsewhere(shared_redis: RedisServer):
    """And back, when the server that was found goes away."""
    with need(RedisServer) as first, need(RedisServer) as second:
        app = app_with([first.url, second.url], ha_beat_redis_url=shared_redis.url)
        settings = load_settings(app)
        assert ignored_brokers(app, settings) is None
        client = broker_client(app, settings)
        assert client is not None
        sender = Sender(f"{first.url};{second.url}")
        for gone, left in ((first, second), (second, first)):
            gone.stop()
            with contextlib.suppress(redis.RedisError):
                client().ping()  # finds out that its server is away
            assert client().ping()
            sender.publisher.reset()
            assert sender.send().outcome is PublishOutcome.ACCEPTED
            assert left.admin.llen("jobs.fifo") == 1
            gone.start()


@pytest.mark.slow
def test_list_of_rabbitmq_brokers_fails_over(rabbitmq: RabbitMQ):
    sender = Sender(f"amqp://127.0.0.1:{free_port()}//;{rabbitmq.url}", timeout=5.0)
    assert sender.send().outcome is PublishOutcome.ACCEPTED
