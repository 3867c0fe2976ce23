"""Messages equal those of stock beat, field by field.

They may differ only in ids, the time of sending, delivery tags and this package's own header.
"""

import json
from collections.abc import Mapping
from datetime import UTC, datetime, timedelta
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
from celery import Celery, Task
from celery.beat import BeatLazyFunc
from celery.signals import after_task_publish, before_task_publish
from kombu import Connection, Exchange, Queue
from kombu.common import Broadcast

from tests.integration.dispatch.conftest import (
    BASIC,
    ENTRY,
    MakeComparison,
    RedisComparison,
    Traffic,
    body_of,
    entry,
    masked,
)

KOMBU = tuple(int(part) for part in version("kombu").split(".")[:2])
FAR = datetime(2040, 5, 6, 7, 8, 9, tzinfo=UTC)

TOPIC = Exchange("orders", type="topic")
TOPIC_QUEUES = {
    "task_queues": [
        Queue("all", TOPIC, routing_key="order.#"),
        Queue("new", TOPIC, routing_key="order.new"),
        Queue("old", TOPIC, routing_key="order.old"),
    ],
    "task_default_queue": "all",
}


def restock(*args: object, **kwargs: object) -> None:
    """Task of a worker."""


def declare(app: Celery) -> Connection:
    """Declare the queues as a worker does. Some exist as long as the returned connection."""
    connection = app.connection_for_write()
    for queue in app.conf.task_queues or [app.amqp.queues[app.conf.task_default_queue]]:
        queue(connection.default_channel).declare()
    return connection


FANOUT = {"task_queues": [Queue("everybody", Exchange("everybody", type="fanout"))]}


# Name: the app's configuration, the entry.
CASES: dict[str, tuple[Mapping[str, Any], Mapping[str, Any]]] = {
    "default queue": ({}, BASIC),
    "no arguments": ({}, {"task": "shop.restock"}),
    "queue option": ({}, entry(queue="slow")),
    "exchange and routing key": ({}, entry(exchange="celery", routing_key="celery")),
    "route by name": ({"task_routes": {"shop.*": {"queue": "shop", "priority": 3}}}, BASIC),
    "route by function": ({"task_routes": (lambda name, *_, **__: {"queue": f"for-{name}"},)}, BASIC),
    "default exchange and routing key": ({"task_default_exchange": "ex", "task_default_routing_key": "rk"}, BASIC),
    "topic exchange to two queues": (TOPIC_QUEUES, entry(exchange="orders", routing_key="order.new")),
    "fanout": (FANOUT, entry(queue="everybody")),
    "fanout by route": ({**FANOUT, "task_routes": {"shop.*": {"queue": "everybody"}}}, BASIC),
    "broadcast": ({"task_queues": [Broadcast("all", queue="all.one")]}, entry(queue="all")),
    **{f"priority {priority}": ({}, entry(priority=priority)) for priority in (0, 1, 3, 5, 6, 9)},
    "default priority": ({"task_default_priority": 6}, BASIC),
    "expires after seconds": ({}, entry(expires=3600)),
    "expires after a fraction": ({}, entry(expires=3600.5)),
    "expires at": ({}, entry(expires=FAR)),
    "countdown": ({}, entry(countdown=600)),
    "eta": ({}, entry(eta=FAR)),
    "local time": ({"timezone": "Asia/Tokyo", "enable_utc": False}, entry(countdown=600, expires=3600)),
    "headers": ({}, entry(headers={"tenant": "blue", "nested": {"a": [1]}})),
    "time limits": ({}, entry(time_limit=30, soft_time_limit=20)),
    "shadow": ({}, entry(shadow="another name")),
    "links": ({}, entry(link=[], ignore_result=True)),
    "ignore result": ({"task_ignore_result": True}, BASIC),
    "reply to": ({}, entry(reply_to="somebody")),
    "message properties": ({}, entry(user_id="guest", app_id="mine", message_id="m1")),
    "delivery mode": ({}, entry(delivery_mode=1)),
    "default delivery mode": ({"task_default_delivery_mode": 1}, BASIC),
    "serializer json": ({"task_serializer": "json"}, BASIC),
    "serializer pickle": ({}, {**entry(serializer="pickle"), "args": ({1, 2}, FAR)}),
    "datetime as json": ({}, {**BASIC, "args": (FAR, timedelta(1).total_seconds())}),
    "compression": ({}, entry(compression="zlib")),
    "compression of all": ({"task_compression": "zlib"}, BASIC),
    "protocol 1": ({"task_protocol": 1}, entry(countdown=600, expires=3600)),
    "protocol 2": ({"task_protocol": 2}, entry(countdown=600, expires=3600)),
    "result backend": ({"result_backend": "rpc://"}, BASIC),
    "extended results": ({"result_extended": True}, BASIC),
    "quorum queues": ({"task_default_queue_type": "quorum"}, entry(countdown=600)),
    "no queues but the given ones": ({"task_create_missing_queues": False}, entry(queue="celery")),
    "representation of arguments": ({}, entry(argsrepr="(hidden)", kwargsrepr="{hidden}")),
    "publish retries": ({"task_publish_retry": True}, entry(retry=True, retry_policy={"max_retries": 1})),
    "inherit parent priority": ({"task_inherit_parent_priority": True}, BASIC),
    "unknown option": ({}, entry(flavour="vanilla")),
}


@pytest.mark.parametrize("registered", [False, True], ids=["by name", "by apply_async"])
@pytest.mark.parametrize("case", CASES)
def test_message_equals_that_of_stock_beat(case: str, registered: bool, make_comparison: MakeComparison):
    """A registered task is sent by its `apply_async`, an unknown task by its name."""
    config, line = CASES[case]
    comparison = make_comparison(config, declare)
    if registered:
        comparison.app.task(name=line["task"], shared=False)(restock)
    assert_equal(comparison, line, warm_up=case == "broadcast")


def test_options_of_the_task_class_are_the_defaults(make_comparison: MakeComparison):
    """Options of the entry replace them."""
    options = {"queue": "by-class", "priority": 6, "expires": 3600, "serializer": "pickle", "compression": "zlib"}
    for line in (BASIC, entry(queue="by-entry", priority=3, serializer="json")):
        comparison = make_comparison()
        comparison.app.task(name=BASIC["task"], time_limit=10, ignore_result=True, shared=False, **options)(restock)
        assert_equal(comparison, line)


def test_task_class_may_change_the_message_in_apply_async(make_comparison: MakeComparison):
    class Tenanted(Task):  # type: ignore[type-arg]
        def apply_async(self, args=None, kwargs=None, **options):  # type: ignore[no-untyped-def]
            kwargs = {**(kwargs or {}), "tenant": "blue"}
            options["headers"] = {**(options.get("headers") or {}), "tenant": "blue"}
            return super().apply_async(args, kwargs, queue="tenants", **options)

    comparison = make_comparison()
    comparison.app.task(name=BASIC["task"], base=Tenanted, shared=False)(restock)
    assert list(assert_equal(comparison, BASIC).queues) == ["tenants"]


def test_task_class_may_drop_its_options(make_comparison: MakeComparison):
    """Its message, and that of another task, are part of the occurrence although they name no producer."""

    class Dropping(Task):  # type: ignore[type-arg]
        def apply_async(self, args=None, kwargs=None, **options):  # type: ignore[no-untyped-def]
            self.app.send_task("audit", args, queue="audits")
            return super().apply_async(args, kwargs, priority=3)

    comparison = make_comparison()
    comparison.app.task(name=BASIC["task"], base=Dropping, shared=False)(restock)
    stock, ours = comparison.stock(BASIC), comparison.ours(BASIC)
    assert list(ours.queues) == ["audits", "celery\x06\x163"]
    assert comparison.ledger()[ENTRY]["verdict"] == "enqueued"
    assert_same(normalised(ours, exact=True), normalised(stock, exact=True))


@pytest.mark.parametrize("registered", [True, False])
def test_options_for_ha_beat_do_not_reach_the_task(make_comparison: MakeComparison, registered: bool):
    """Neither the task's `apply_async` nor the message has them."""
    given = []

    class Noting(Task):  # type: ignore[type-arg]
        def apply_async(self, args=None, kwargs=None, **options):  # type: ignore[no-untyped-def]
            given.append(options)
            return super().apply_async(args, kwargs, **options)

    comparison = make_comparison()
    if registered:
        comparison.app.task(name=BASIC["task"], base=Noting, shared=False)(restock)
    rules = {"misfire": "skip", "misfire_grace": 1e6, "uncertain": "republish"}
    line = entry(priority=3)
    stock, ours = comparison.stock(line), comparison.ours({**line, "options": {**line["options"], "ha_beat": rules}})
    (message,) = ours.messages
    assert "republish" not in json.dumps(message)
    assert len(stock.messages) == 1
    assert_same(normalised(ours, exact=False), normalised(stock, exact=False), "message")
    assert not any("ha_beat" in options for options in given)
    assert bool(given) == registered


def test_lazy_arguments_are_evaluated_when_sent(make_comparison: MakeComparison):
    line = {**BASIC, "args": (BeatLazyFunc(lambda: "now"),), "kwargs": {"late": BeatLazyFunc(lambda: 2)}}
    traffic = assert_equal(make_comparison(), line)
    assert json.loads(body_of(traffic.messages[0]))[:2] == [["now"], {"late": 2}]


TO_TWO_QUEUES = entry(exchange="orders", routing_key="order.new", priority=6)


@pytest.mark.parametrize(("config", "line", "queues"), [({}, BASIC, 1), (TOPIC_QUEUES, TO_TWO_QUEUES, 2)])
def test_key_prefix_applies_to_every_queue(config: Any, line: Any, queues: int, make_comparison: MakeComparison):
    """kombu prefixes only some of the keys of a script or a transaction. The keys of ha_beat have no prefix."""
    traffic = assert_equal(make_comparison(config, declare, global_keyprefix="shop:"), line)
    assert len(traffic.queues) == queues
    assert all(key.startswith("shop:") for key in traffic.queues)


def test_priority_steps_select_the_list(make_comparison: MakeComparison):
    options = {"priority_steps": [0, 2, 4, 6, 8], "sep": ":", "queue_order_strategy": "priority"}
    traffic = assert_equal(make_comparison({}, declare, **options), entry(priority=5))
    assert list(traffic.queues) == ["celery:4"]


@pytest.mark.parametrize(
    "option", [{"fanout_prefix": False}, {"fanout_patterns": False}, {"fanout_prefix": "/{db}/x."}]
)
def test_fanout_channel_has_prefix_and_patterns(option: dict[str, Any], make_comparison: MakeComparison):
    """The channel's name depends on two options of the transport."""
    traffic = assert_equal(make_comparison(FANOUT, declare, **option), entry(queue="everybody"))
    assert len(traffic.published) == 1


@pytest.mark.skipif(KOMBU < (5, 7), reason="kombu before 5.7 has no expiring queues on Redis")
def test_message_renews_the_expiry_of_its_queue(make_comparison: MakeComparison):
    queue = Queue("fleeting", expires=600)
    traffic = assert_equal(make_comparison({"task_queues": [queue]}, declare), entry(queue="fleeting"))
    assert traffic.expiring == {"fleeting"}


def test_task_sent_event_is_published(make_comparison: MakeComparison):
    def listen(app: Celery) -> Connection:
        connection = declare(app)
        receiver = app.events.Receiver(connection, handlers={}, node_id="monitor")
        receiver.queue(connection.default_channel).declare()
        return connection

    traffic = assert_equal(make_comparison({"task_send_sent_event": True}, listen), BASIC)
    assert len(traffic.messages) + len(traffic.published) == 2, traffic


def test_signal_handlers_may_change_the_message(make_comparison: MakeComparison):
    """before_task_publish may change headers and body in place; after_task_publish is sent too."""
    comparison = make_comparison()
    calls = []

    @before_task_publish.connect(weak=False)
    def before(sender=None, body=None, headers=None, properties=None, routing_key=None, **more):  # type: ignore[no-untyped-def]
        headers["trace"] = "abc"
        properties["priority"] = 6
        body[1]["added"] = True
        calls.append(("before", (sender, routing_key, sorted(more))))

    @after_task_publish.connect(weak=False)
    def after(sender=None, headers=None, routing_key=None, exchange=None, **more):  # type: ignore[no-untyped-def]
        calls.append(("after", (sender, headers["trace"], routing_key, exchange, sorted(more))))

    try:
        traffic = assert_equal(comparison, BASIC)
    finally:
        before_task_publish.disconnect(before)
        after_task_publish.disconnect(after)
    assert calls[:2] == calls[2:]
    assert [name for name, _ in calls] == ["before", "after"] * 2
    (message,) = traffic.messages
    assert message["headers"]["trace"] == "abc"
    assert json.loads(body_of(message))[1]["added"] is True


def test_signed_message_is_accepted_with_the_certificate(make_comparison: MakeComparison, tmp_path: Path):
    """With the serializer `auth`, the content is the same."""
    write_certificate(tmp_path)
    names = {"security_key": "key", "security_certificate": "certificate.pem", "security_cert_store": "*.pem"}
    config = {name: str(tmp_path / path) for name, path in names.items()}
    config |= {"task_serializer": "auth", "event_serializer": "auth", "accept_content": ["auth"]}
    comparison = make_comparison(config)
    from kombu.serialization import disable_insecure_serializers, enable_insecure_serializers, loads, registry

    try:
        comparison.app.setup_security()
        stock, ours = comparison.stock(BASIC), comparison.ours(BASIC)
        contents = [
            loads(body_of(message), message["content-type"], message["content-encoding"], accept=["auth"])
            for message in (stock.messages[0], ours.messages[0])
        ]
    finally:
        registry.unregister("auth")
        disable_insecure_serializers(["json"])
        enable_insecure_serializers(["json", "pickle", "yaml", "msgpack"])
    assert contents[0] == contents[1]
    assert contents[0][0] == [1, "zwei"]
    for message in (*stock.messages, *ours.messages):
        message["body"] = ""
    assert_same(normalised(ours, exact=True), normalised(stock, exact=True))


# --- Comparison


def assert_equal(comparison: RedisComparison, line: Mapping[str, Any], *, warm_up: bool = False) -> Traffic:
    """Send the entry both ways, and return the traffic of ha_beat.

    ``warm_up``: Celery before 5.7 does not find the queues of a Broadcast at a process's first send.
    """
    if warm_up:
        comparison.stock(line)
    stock, ours = comparison.stock(line), comparison.ours(line)
    assert stock.messages or stock.published, "stock beat sent nothing, so this compares nothing"
    for message in (*ours.messages, *(content for _, content in ours.published)):
        headers = message["headers"]
        if "task" in headers or comparison.app.conf.task_protocol == 1:
            assert headers["ha_beat"]["entry"] == ENTRY
            assert headers["celery_beat_task"] is True
    relative = any(name in line.get("options", {}) for name in ("countdown", "expires"))
    exact = not relative and not any(task.expires for task in comparison.app.tasks.values())
    assert_same(normalised(ours, exact=exact), normalised(stock, exact=exact))
    assert (ours.expiring, ours.others) == (stock.expiring, stock.others)
    return ours


def assert_same(ours: Any, stock: Any, path: str = "") -> None:
    """Fail with the path of the first field that differs."""
    if isinstance(ours, Mapping) and isinstance(stock, Mapping):
        assert ours.keys() == stock.keys(), path
        for name in ours:
            assert_same(ours[name], stock[name], f"{path}/{name}")
    elif isinstance(ours, list | tuple) and isinstance(stock, list | tuple) and len(ours) == len(stock):
        for number, (left, right) in enumerate(zip(ours, stock, strict=True)):
            assert_same(left, right, f"{path}/{number}")
    else:
        assert ours == stock, path


def normalised(traffic: Traffic, *, exact: bool) -> Any:
    queues = {key: [_normalised(message, exact) for message in found] for key, found in traffic.queues.items()}
    return queues, [(channel, _normalised(message, exact)) for channel, message in traffic.published]


def _normalised(message: Any, exact: bool) -> Any:
    headers = {**message["headers"], "origin": "origin"}
    headers.pop("ha_beat", None)
    headers.pop("celery_beat_task", None)  # beat before Celery 5.6 does not set it yet
    ids = {headers.get("id"), message["properties"].get("correlation_id"), headers.get("root_id")}
    content: Any = body_of(message)
    if message["content-type"] == "application/json" and not headers.get("compression"):
        content = json.loads(content)
        if isinstance(content, dict):  # protocol 1, or an event
            ids.add(content.get("id") or content.get("uuid"))
            content = {name: value for name, value in content.items() if name not in ("timestamp", "clock")}
    properties = {**message["properties"], "delivery_tag": "tag"}
    return masked({**message, "headers": headers, "properties": properties, "body": content}, ids, exact=exact)


def write_certificate(folder: Path) -> None:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    day, now = timedelta(days=1), datetime.now(UTC)
    certificate = x509.CertificateBuilder(name, name, private.public_key(), 1, now - day, now + day)
    pem, form = serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL
    (folder / "key").write_bytes(private.private_bytes(pem, form, serialization.NoEncryption()))
    (folder / "certificate.pem").write_bytes(certificate.sign(private, hashes.SHA256()).public_bytes(pem))
