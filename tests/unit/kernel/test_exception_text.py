"""Text of exceptions without secrets."""

import pytest
from celery import Celery

from ha_beat import exception_text
from ha_beat.celery_app import load_settings
from ha_beat.exception_text import exception_line, keep_secret, without_secrets


@pytest.fixture(autouse=True)
def known(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(exception_text, "_known", set())


@pytest.mark.parametrize(
    ("text", "safe"),
    [
        ("redis://:pw@h/0", "redis://***@h/0"),
        ("amqp://u:p%40w@h:5672//", "amqp://***@h:5672//"),
        ("amqp://u:slash/pw@h//", "amqp://***@h//"),
        ("can't reach 'postgresql://u:at@pw@h/db' now", "can't reach 'postgresql://***@h/db' now"),
        ("sentinel://:one@h1;sentinel://:two@h2", "sentinel://***@h1;sentinel://***@h2"),
        ("rediss://h:1/0?password=pw&db=1", "rediss://h:1/0?password=***&db=1"),
        ("host=db user=u password=pw dbname=d", "host=db user=u password=*** dbname=d"),
        ("host=db password='p w' dbname=d", "host=db password=*** dbname=d"),
        ("{'host': 'h', 'password': 'pw', 'db': 0}", "{'host': 'h', 'password': ***, 'db': 0}"),
        ('{"api_key":"pw","db":0}', '{"api_key":***,"db":0}'),
        ("no secrets at http://h:80/a, token expected", "no secrets at http://h:80/a, token expected"),
    ],
)
def test_secrets_are_masked(text: str, safe: str):
    assert without_secrets(text) == safe


def test_secrets_of_the_settings_are_masked_literally():
    app = Celery("shop", broker="redis://:broker%2Fpw@h/0", backend="db+postgresql://u:result-pw@h/d")
    app.conf.broker_transport_options = {"sentinel_kwargs": {"password": "sentinel-pw"}}
    app.conf.ha_beat_redis_url = "redis://user:lease-pw@h/0"
    load_settings(app)
    assert without_secrets("broker%2Fpw broker/pw (result-pw) sentinel-pw, lease-pw") == "*** *** (***) ***, ***"


def test_short_secret_is_not_masked_inside_words():
    keep_secret("a")
    assert without_secrets("a late reply") == "a late reply"


class Unprintable(Exception):
    def __str__(self) -> str:
        raise RuntimeError


@pytest.mark.parametrize(
    ("exc", "line"),
    [
        (ValueError(), "ValueError"),
        (ValueError("two\n lines"), "ValueError: two lines"),
        (Unprintable(), "Unprintable (its text can't be read)"),
        (ValueError("x" * 1000), "ValueError: " + "x" * 488 + "…"),
    ],
    ids=["no text", "lines", "unprintable", "long"],
)
def test_exception_is_one_line(exc: Exception, line: str):
    assert exception_line(exc) == line
