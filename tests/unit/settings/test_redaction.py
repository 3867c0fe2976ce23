"""Secrets in settings, which URLs, settings and errors must not show."""

import re
from urllib.parse import quote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_beat.settings import redact_url
from tests.unit.settings.test_settings import complaint, load


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://h:6379/0", "redis://h:6379/0"),
        ("redis://:pw@h:6379/0", "redis://:***@h:6379/0"),
        ("redis://beat:pw@h", "redis://beat:***@h"),
        ("redis://pw@h", "redis://***@h"),
        ("redis://:p@w@h/0", "redis://:***@h/0"),
        ("redis://:p/w@h/0", "redis://:***@h/0"),
        ("redis://:p#w@h/0", "redis://:***@h/0"),
        ("redis://:p:w;x@h/0", "redis://:***@h/0"),
        ("redis://:p?w@h/0", "redis://***"),
        ("redis://:pw", "redis://***"),
        ("redis://h/0?password=pw&db=1", "redis://h/0?password=***&db=1"),
        ("redis://h/0?db=1;password=pw", "redis://h/0?db=1;password=***"),
        ("redis://h/0?password=p@w", "redis://***"),
        ("rediss://h?ssl_keyfile_password=pw", "rediss://h?ssl_keyfile_password=***"),
        ("rediss://[::1]:6379/0?ssl_cert_reqs=required", "rediss://[::1]:6379/0?ssl_cert_reqs=required"),
        ("redis+socket:///run/r.sock?password=pw", "redis+socket:///run/r.sock?password=***"),
        ("unix://u:pw@/run/r.sock", "unix://u:***@/run/r.sock"),
        ("sentinel://:pw@a:1;sentinel://:pw@b:2/0", "sentinel://:***@a:1;sentinel://:***@b:2/0"),
        ("sentinel://:pw@a:1;b:2", "sentinel://:***@a:1;b:2"),
        ("sentinel://a:1;sentinel://b:2?sentinel_password=pw", "sentinel://a:1;sentinel://b:2?sentinel_password=***"),
        (":pw@h", ":***@h"),
        ("localhost:6379", "localhost:6379"),
        ("", ""),
    ],
)
def test_passwords_in_urls_are_hidden(url, shown):
    assert redact_url(url) == shown
    assert redact_url(shown) == shown


PASSWORDS = st.text(min_size=1, max_size=30).map(lambda text: f"qz{text}qz")
FORMS = [
    *("redis://:{}@host:6379/0", "rediss://beat:{}@host", "sentinel://:{0}@a:26379;sentinel://:{0}@b:26379/1"),
    *("redis://host/0?db=1&password={}", "unix://:{}@/run/redis.sock?db=0"),
]


@given(PASSWORDS, st.booleans(), st.sampled_from(FORMS))
def test_password_is_hidden_in_every_spelling(password, quoted, form):
    """The marks at both ends of the password are hidden, too, even if the password is not quoted as it should be."""
    if not quoted and ("://" in password or ("?" in form and re.search("[&;]", password))):
        return  # such a URL means something else
    assert "qz" not in redact_url(form.format(quote(password, safe="") if quoted else password))


class Secret:
    def __repr__(self) -> str:
        return "hunter2"


def test_settings_never_show_a_secret():
    options = {"username": "hunter2", "password": "hunter2", "ssl_password": "hunter2", "socket_timeout": 1.5}
    nested = {"password": "hunter2", "hosts": ["redis://:hunter2@h"]}
    options |= {"sentinel_kwargs": nested, "credential_provider": Secret(), "health_check": Secret()}
    settings = load(redis_url="redis://beat:hunter2@h/0", redis_options=options)
    assert "hunter2" not in repr(settings) + str(settings.describe())
    assert "redis://beat:***@h/0" in repr(settings)
    assert "'socket_timeout': 1.5" in repr(settings)
    assert settings.redis_url == "redis://beat:hunter2@h/0"


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("redis_url", "amqp://beat:hunter2@h"),
        ("redis_url", "redis://:hunter2@h:port"),
        ("redis_options", '{"password": "hunter2"'),
        ("redis_options", ["hunter2"]),
        ("redis_options", {1: 2, "password": "hunter2"}),
        ("http_bind", "http://:hunter2@h:80"),
    ],
)
def test_error_about_a_value_does_not_show_its_secret(name, value):
    assert "hunter2" not in complaint(**{name: value})
    if isinstance(value, str):
        assert "hunter2" not in complaint({f"HA_BEAT_{name.upper()}": value})
