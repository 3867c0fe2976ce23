"""Messages equal those of stock beat, field by field.

Only what must differ may: ids, the time of sending, delivery tags, and this package's own header.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
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

from tests.integration.dispatch.conftest import ENTRY, Comparison, Traffic, body_of

KOMBU = tuple(int(part) for part in version("kombu").split(".")[:2])
FAR = datetime(2040, 5, 6, 7, 8, 9, tzinfo=UTC)

BASIC = {"task": "shop.restock", "args": (1, "zwei"), "kwargs": {"three": 3}}

TOPIC = Exchange("orders", type="topic")
TOPIC_QUEUES = {
    "task_queues": [
        Queue("all", TOPIC, routing_key="order.#"),
        Queue("new", TOPIC, routing_key="order.new"),
        Queue("old", TOPIC, routing_key="order.old"),
    ],
    "task_default_queue": "all",
}


def entry(**options: Any) -> dict[str, Any]:
    return {**BASIC, "options": options}


def restock(*args: object, **kwargs: object) -> None:
    """Task of a worker."""


def declare(app: Celery) -> Connection:
    """Declare the queues as a worker does. Some are deleted when the returned connection is closed."""
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
    "an option that nobody knows": ({}, entry(flavour="vanilla")),
}


@pytest.mark.parametrize("case", CASES)
def test_unregistered_task_is_sent_by_name(case: str, make_comparison: Callable[..., Comparison]):
    config, line = CASES[case]
    assert_equal(make_comparison(config, declare), line, warm_up=case == "broadcast")


@pytest.mark.parametrize("case", CASES)
def test_registered_task_is_sent_by_its_apply_async(case: str, make_comparison: Callable[..., Comparison]):
    config, line = CASES[case]
    comparison = make_comparison(config, declare)
    comparison.app.task(name=line["task"], shared=False)(restock)
    assert_equal(comparison, line, warm_up=case == "broadcast")


def test_options_of_the_task_class_are_the_defaults(make_comparison: Callable[..., Comparison]):
    """The options of the entry win."""

    def comparison() -> Comparison:
        made = make_comparison()
        made.app.task(
            name=BASIC["task"],
            queue="by-class",
            priority=6,
            expires=3600,
            serializer="pickle",
            compression="zlib",
            time_limit=10,
            ignore_result=True,
            shared=False,
        )(restock)
        return made

    assert_equal(comparison(), BASIC)
    assert_equal(comparison(), entry(queue="by-entry", priority=3, serializer="json"))


def test_task_class_may_change_the_message_in_apply_async(make_comparison: Callable[..., Comparison]):
    """It may add arguments and headers, or choose another queue."""

    class Tenanted(Task):  # type: ignore[type-arg]
        def apply_async(self, args=None, kwargs=None, **options):  # type: ignore[no-untyped-def]
            kwargs = {**(kwargs or {}), "tenant": "blue"}
            options["headers"] = {**(options.get("headers") or {}), "tenant": "blue"}
            return super().apply_async(args, kwargs, queue="tenants", **options)

    comparison = make_comparison()
    comparison.app.task(name=BASIC["task"], base=Tenanted, shared=False)(restock)
    traffic = assert_equal(comparison, BASIC)
    assert list(traffic.queues) == ["tenants"]


@pytest.mark.parametrize("registered", [True, False])
def test_options_for_ha_beat_do_not_reach_the_task(make_comparison: Callable[..., Comparison], registered: bool):
    """Neither its `apply_async` nor its message."""
    given: list[Mapping[str, Any]] = []

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


def test_lazy_arguments_are_evaluated_when_sent(make_comparison: Callable[..., Comparison]):
    line = {**BASIC, "args": (BeatLazyFunc(lambda: "now"),), "kwargs": {"late": BeatLazyFunc(lambda: 2)}}
    traffic = assert_equal(make_comparison(), line)
    assert json.loads(body_of(traffic.messages[0]))[:2] == [["now"], {"late": 2}]


def test_key_prefix_applies_to_queues_only(make_comparison: Callable[..., Comparison]):
    """The keys of ha_beat have no prefix."""
    comparison = make_comparison({}, declare, global_keyprefix="shop:")
    traffic = assert_equal(comparison, BASIC)
    assert list(traffic.queues) == ["shop:celery"]


def test_key_prefix_applies_to_each_of_several_queues(make_comparison: Callable[..., Comparison]):
    """kombu prefixes only some of the keys of a script or a transaction."""
    comparison = make_comparison(TOPIC_QUEUES, declare, global_keyprefix="shop:")
    traffic = assert_equal(comparison, entry(exchange="orders", routing_key="order.new", priority=6))
    assert len(traffic.queues) == 2
    assert all(key.startswith("shop:") for key in traffic.queues)


def test_priority_steps_select_the_list(make_comparison: Callable[..., Comparison]):
    options = {"priority_steps": [0, 2, 4, 6, 8], "sep": ":", "queue_order_strategy": "priority"}
    traffic = assert_equal(make_comparison({}, declare, **options), entry(priority=5))
    assert list(traffic.queues) == ["celery:4"]


def test_fanout_channel_has_prefix_and_patterns(make_comparison: Callable[..., Comparison]):
    """Its name depends on two options of the transport."""
    for options in ({"fanout_prefix": False}, {"fanout_patterns": False}, {"fanout_prefix": "/{db}/x."}):
        traffic = assert_equal(make_comparison(FANOUT, declare, **options), entry(queue="everybody"))
        assert len(traffic.published) == 1


@pytest.mark.skipif(KOMBU < (5, 7), reason="kombu before 5.7 has no expiring queues on Redis")
def test_message_renews_the_expiry_of_its_queue(make_comparison: Callable[..., Comparison]):
    queue = Queue("fleeting", expires=600)
    traffic = assert_equal(make_comparison({"task_queues": [queue]}, declare), entry(queue="fleeting"))
    assert traffic.expiring == {"fleeting"}


def test_task_sent_event_is_published(make_comparison: Callable[..., Comparison]):
    """With task_send_sent_event."""

    def listen(app: Celery) -> Connection:
        connection = declare(app)
        receiver = app.events.Receiver(connection, handlers={}, node_id="monitor")
        receiver.queue(connection.default_channel).declare()
        return connection

    comparison = make_comparison({"task_send_sent_event": True}, listen)
    traffic = assert_equal(comparison, BASIC)
    everything = json.dumps([traffic.queues, traffic.published], default=str)
    assert len(traffic.messages) + len(traffic.published) == 2, everything


def test_signal_handlers_may_change_the_message(make_comparison: Callable[..., Comparison]):
    """before_task_publish may change headers and body in place; after_task_publish is sent too."""
    comparison = make_comparison()
    calls: list[tuple[str, Any]] = []

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
    message = traffic.messages[0]
    assert message["headers"]["trace"] == "abc"
    assert json.loads(body_of(message))[1]["added"] is True


def test_signed_message_is_accepted_with_the_certificate(make_comparison: Callable[..., Comparison], tmp_path: Path):
    """The content is the same with the serializer `auth`."""
    key, certificate = _certificate(tmp_path)
    comparison = make_comparison(
        {
            "security_key": str(key),
            "security_certificate": str(certificate),
            "security_cert_store": str(tmp_path / "*.pem"),
            "task_serializer": "auth",
            "event_serializer": "auth",
            "accept_content": ["auth"],
        }
    )
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


# ------------------------------------------------------------------------------------------------ the comparison


def assert_equal(comparison: Comparison, line: Mapping[str, Any], *, warm_up: bool = False) -> Traffic:
    """Send the entry both ways; returns what ha_beat sent.

    ``warm_up``: Celery before 5.7 does not find a Broadcast's queues the first time that a process sends to it.
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
    published = [(channel, _normalised(message, exact)) for channel, message in traffic.published]
    return queues, published


def _normalised(message: Any, exact: bool) -> Any:
    headers = dict(message["headers"])
    headers.pop("ha_beat", None)
    headers.pop("celery_beat_task", None)  # beat before Celery 5.6 does not set it yet
    ids = {headers.get("id"), message["properties"].get("correlation_id"), headers.get("root_id")} - {None}
    properties = {**message["properties"], "delivery_tag": "tag"}
    body = body_of(message)
    content: Any = body
    if message["content-type"] == "application/json" and not headers.get("compression"):
        content = json.loads(body)
        if isinstance(content, dict):  # protocol 1, or an event
            ids.add(content.get("id") or content.get("uuid"))
            content = {name: value for name, value in content.items() if name not in ("timestamp", "clock")}
    result = {
        "headers": {**headers, "origin": "origin"},
        "properties": properties,
        "content": content,
        **{name: value for name, value in message.items() if name not in ("headers", "properties", "body")},
    }
    return _without(result, ids, exact)


def _without(value: Any, ids: set[Any], exact: bool) -> Any:
    """Replace ids and, unless ``exact``, each instant by one that is equal to instants close to it."""
    if isinstance(value, Mapping):
        return {
            name: Instant(_TIMES[name](item))
            if not exact and name in _TIMES and isinstance(item, str)
            else _without(item, ids, exact)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [_without(item, ids, exact) for item in value]
    if value in ids and value is not None and isinstance(value, str):
        return "id"
    return value


_TIMES: dict[str, Callable[[str], datetime]] = {
    "eta": datetime.fromisoformat,
    "expires": datetime.fromisoformat,
    "expiration": lambda milliseconds: datetime.fromtimestamp(int(milliseconds) / 1000, UTC),
}


class Instant:
    """Instant that equals another one less than a minute away with the same offset from UTC."""

    def __init__(self, at: datetime) -> None:
        self.at = at

    def __repr__(self) -> str:
        return f"about {self.at.isoformat()}"

    def __eq__(self, other: object) -> bool:
        return (
            isinstance(other, Instant)
            and self.at.utcoffset() == other.at.utcoffset()
            and abs(self.at - other.at) < timedelta(minutes=1)
        )

    __hash__ = None  # type: ignore[assignment]


def _certificate(folder: Path) -> tuple[Path, Path]:
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import rsa
    from cryptography.x509.oid import NameOID

    private = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "tests")])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(1)
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .sign(private, hashes.SHA256())
    )
    key_file, certificate_file = folder / "key", folder / "certificate.pem"
    key_file.write_bytes(
        private.private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.TraditionalOpenSSL,
            serialization.NoEncryption(),
        )
    )
    certificate_file.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return key_file, certificate_file
