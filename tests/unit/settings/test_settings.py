"""Values and sources of settings, and the errors of wrong values."""

import dataclasses
import os
import re
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ha_beat.errors import ConfigurationError, HaBeatError
from ha_beat.settings import SETTINGS, Settings

NAMES = [setting.name for setting in SETTINGS]


def load(environ: dict[str, str] | None = None, **conf: object) -> Settings:
    return Settings.load({f"ha_beat_{name}": value for name, value in conf.items()}, environ or {}, "shop")


def complaint(environ: dict[str, str] | None = None, **conf: object) -> str:
    with pytest.raises(ConfigurationError) as caught:
        load(environ, **conf)
    assert isinstance(caught.value, HaBeatError)
    return str(caught.value)


# --- Values and defaults


def test_unset_settings_have_their_documented_defaults():
    described = [used for used in load().describe() if used.name != "replica"]
    assert " ".join(f"{used.name}={used.value!r}" for used in described) == (
        "redis_url=None redis_options={} cluster='shop' lease_ttl=10.0 renew_interval=2.5 poll_interval=0.1 "
        "stall_timeout=15.0 command_timeout=2.5 batch_size=100 misfire='once' misfire_grace=None misfire_limit=100 "
        "uncertain='skip' publish_deadline=60.0 on_state_loss='skip' wait_replicas=0 journal_size=10000 "
        "journal_age=604800.0 http_bind=None page_url=None metrics_per_entry=False"
    )
    assert all(used.is_default and used.source == "default" for used in described)


#: The value of each text, by setting.
VALUES: dict[str, dict[str, object]] = {
    "redis_url": {
        "redis://:pw@h:6379/1": "redis://:pw@h:6379/1",
        " rediss://h ": "rediss://h",
        "sentinel://a:26379;sentinel://b:26379": "sentinel://a:26379;sentinel://b:26379",
        "sentinel://a:26379;b:26379/0": "sentinel://a:26379;b:26379/0",
        "unix:///run/redis.sock?db=1": "unix:///run/redis.sock?db=1",
        "none": None,
    },
    "redis_options": {'{"username": "beat", "socket_timeout": 1.5}': {"username": "beat", "socket_timeout": 1.5}},
    "cluster": {"shop:eu-1.a_b": "shop:eu-1.a_b"},
    "replica": {"beat-0": "beat-0"},
    "lease_ttl": {"3": 3.0, "2.5": 2.5},
    "renew_interval": {"0.5": 0.5},
    "poll_interval": {"0.05": 0.05},
    "stall_timeout": {"1e2": 100.0},
    "command_timeout": {"1": 1.0},
    "batch_size": {"500": 500},
    "misfire": {"ALL": "all"},
    "misfire_grace": {"0.1": 0.1, "None": None},
    "misfire_limit": {"1": 1},
    "uncertain": {"republish": "republish"},
    "publish_deadline": {"none": None},
    "on_state_loss": {"catch_up": "catch_up"},
    "wait_replicas": {"2": 2},
    "journal_size": {"100": 100},
    "journal_age": {"none": None},
    "http_bind": {"[::]:8080": "[::]:8080", "beat.example:0": "beat.example:0", "h:8080-8081": "h:8080-8081"},
    "page_url": {"https://beat.example/{replica}": "https://beat.example/{replica}"},
    "metrics_per_entry": {"yes": True, "0": False},
}


@pytest.mark.parametrize(
    ("name", "text", "value"), [(name, *pair) for name, values in VALUES.items() for pair in values.items()]
)
def test_value_reads_the_same_from_a_variable_and_from_the_app(name, text, value):
    from_variable, from_app = load({f"HA_BEAT_{name.upper()}": text}), load(**{name: value})
    assert getattr(from_variable, name) == getattr(from_app, name) == value
    assert type(getattr(from_app, name)) is type(value)


def test_each_setting_is_tested_with_a_value():
    assert set(VALUES) == set(NAMES)


def test_durations_may_be_timedeltas_and_integers():
    assert load(lease_ttl=timedelta(seconds=4)).lease_ttl == 4.0
    assert isinstance(load(lease_ttl=4).lease_ttl, float)


@pytest.mark.parametrize(("ttl", "renew_interval", "command_timeout"), [(4, 1.0, 1.0), (100, 25.0, 2.5)])
def test_default_that_follows_from_another_setting_follows_it(ttl, renew_interval, command_timeout):
    settings = load(lease_ttl=ttl)
    assert (settings.renew_interval, settings.command_timeout) == (renew_interval, command_timeout)


def test_environment_wins_over_the_app():
    settings = load({"HA_BEAT_LEASE_TTL": "7"}, lease_ttl=5, batch_size=7)
    assert (settings.lease_ttl, settings.batch_size) == (7.0, 7)
    assert settings.sources == {"lease_ttl": "HA_BEAT_LEASE_TTL", "batch_size": "ha_beat_batch_size"}


def test_empty_variable_counts_as_not_set():
    """Compose and Helm set empty variables for values that their users left out."""
    assert load({"HA_BEAT_LEASE_TTL": "", "HA_BEAT_REDIS_URL": "  "}, lease_ttl=5).lease_ttl == 5.0


@pytest.mark.parametrize(
    ("environ", "host"),
    [({"POD_NAME": "beat-7f", "HOSTNAME": "h"}, "beat-7f"), ({"HOSTNAME": "h"}, "h"), ({"HOSTNAME": "a b\n"}, "a-b-")],
)
def test_replica_name_defaults_to_host_and_process(environ, host):
    assert load(environ).replica == f"{host}:{os.getpid()}"


def test_variables_of_a_kubernetes_service_are_ignored():
    """Beside a service named ha-beat, Kubernetes sets HA_BEAT_PORT and others in every pod."""
    names = [
        *("SERVICE_HOST", "SERVICE_PORT", "SERVICE_PORT_HTTP", "PORT", "PORT_8080_TCP_ADDR"),
        *("REDIS_SERVICE_HOST", "REDIS_SERVICE_PORT", "REDIS_PORT"),
    ]
    environ = {f"HA_BEAT_{name}": "tcp://10.0.0.1:8080" for name in names}
    assert load({**environ, "HA_BEAT_LEASE_TTL": "5"}).sources == {"lease_ttl": "HA_BEAT_LEASE_TTL"}
    assert "HA_BEAT_PORT: unknown setting" in complaint({"HA_BEAT_PORT": "8080"})


@pytest.mark.parametrize(
    ("bind", "address"),
    [
        ("[::]:8080", ("::", range(8080, 8081))),
        ("127.0.0.1:80", ("127.0.0.1", range(80, 81))),
        ("127.0.0.1:8080-8089", ("127.0.0.1", range(8080, 8090))),
        ("none", None),
    ],
)
def test_http_bind_comes_apart_into_host_and_ports(bind, address):
    assert load(http_bind=bind).http_address == address


def test_settings_created_directly_are_validated_and_completed():
    settings = Settings(cluster="c", lease_ttl=2, replica="r")
    assert (settings.lease_ttl, settings.renew_interval, settings.batch_size) == (2.0, 0.5, 100)
    assert dataclasses.replace(settings, batch_size=9).batch_size == 9
    with pytest.raises(ConfigurationError, match=r"ha_beat_batch_size=0: must be a whole number from 1 to 500"):
        Settings(cluster="c", batch_size=0)
    with pytest.raises(ConfigurationError, match="ha_beat_cluster: not set"):
        Settings()


def test_options_are_copied_from_the_app():
    options: dict[str, Any] = {"socket_timeout": 1}
    settings = load(redis_options=options)
    options["socket_timeout"] = "x"
    assert settings.redis_options == {"socket_timeout": 1}


# --- Faults


WRONG: dict[str, list[object]] = {
    "redis_url": ["localhost:6379", "amqp://h", "redis://", "redis://h:port", "sentinel://a;amqp://b", 5],
    "redis_options": ["{", "[1]", "[" * 100_000, {1: 2}, None],
    "cluster": ["", "a b", "{a}", "é", "a" * 101],
    "replica": ["a b", "a\n"],
    "lease_ttl": ["10s", "0.9", "3601", "nan", "inf", "1e999", 10**400, True, None],
    "renew_interval": ["0", "0.04"],
    "poll_interval": ["0.049"],
    "stall_timeout": ["0.5", "1", "1.9"],
    "command_timeout": ["-1", "0.04"],
    "batch_size": ["0", "501", 1.5, True, "9" * 5000],
    "misfire": ["twice", None],
    "misfire_grace": ["-1", "0", 0.01],
    "misfire_limit": ["0"],
    "uncertain": ["retry"],
    "publish_deadline": ["0"],
    "on_state_loss": ["catch-up"],
    "wait_replicas": ["-1"],
    "journal_size": ["99"],
    "journal_age": ["0"],
    "http_bind": ["8080", ":8080", "::1:8080", "h:65536", "h:8080/path", "h:2-1", "h:0-3"],
    "page_url": ["beat.example", "javascript:alert(1)", 3],
    "metrics_per_entry": ["maybe", 2],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in WRONG.items() for value in values])
def test_wrong_value_is_refused_with_its_name_and_the_valid_values(name, value):
    (setting,) = (setting for setting in SETTINGS if setting.name == name)
    message = complaint(**{name: value})
    assert message.startswith(f"ha_beat_{name}=")
    assert message.endswith(f": must be {setting.kind.right}")
    assert len(message.splitlines()) == 1
    assert len(message) < 300
    if isinstance(value, str) and value.strip():
        assert complaint({f"HA_BEAT_{name.upper()}": value}).startswith(f"HA_BEAT_{name.upper()}=")


TTL = "ha_beat_lease_ttl"
REPLACES = "because it replaces ha_beat_command_timeout"
SECOND_RENEWAL = "because a renewal without an answer must leave time for another one"

#: By the start of the message: settings that are accepted, settings that are refused, and the valid values.
RELATIONS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "ha_beat_renew_interval=6.0": ({"renew_interval": 5}, {"renew_interval": 6}, f"at most half of {TTL} (10.0)"),
    "ha_beat_command_timeout=2.0": (
        {"lease_ttl": 4, "command_timeout": 1.99},
        {"lease_ttl": 4, "command_timeout": 2},
        f"less than half of {TTL} (4.0)",
    ),
    "ha_beat_poll_interval=3.0": (
        {"lease_ttl": 2, "poll_interval": 2},
        {"lease_ttl": 2, "poll_interval": 3},
        f"at most {TTL} (2.0)",
    ),
    "ha_beat_stall_timeout=15.0 (default)": (
        {"lease_ttl": 60, "poll_interval": 14},
        {"lease_ttl": 60, "poll_interval": 20},
        "more than ha_beat_poll_interval (20.0)",
    ),
    "ha_beat_command_timeout=4.0": (
        {"renew_interval": 5, "command_timeout": 3.5},
        {"renew_interval": 5, "command_timeout": 4},
        f"at most 3.5 with {TTL} (10.0) and ha_beat_renew_interval (5.0), {SECOND_RENEWAL}",
    ),
    "ha_beat_redis_options['socket_timeout']=60": (
        {"redis_options": {"socket_timeout": 4.9}, "redis_url": "redis://h/0?socket_timeout=60"},
        {"redis_options": {"socket_timeout": 60}},
        f"a number of seconds less than half of {TTL} (10.0), {REPLACES}",
    ),
    "socket_connect_timeout of ha_beat_redis_url='5'": (
        {"lease_ttl": 3600},
        {"redis_url": "redis://h/0?socket_connect_timeout=5", "lease_ttl": 4},
        f"a number of seconds less than half of {TTL} (4.0), {REPLACES}",
    ),
    "ha_beat_stall_timeout=1": (
        {"stall_timeout": 2},
        {"stall_timeout": 1},
        "a number of seconds from 2 up, because an idle main loop makes progress only once a second",
    ),
    "HA_BEAT_LEASE_TTL='10s'": (
        {"lease_ttl": 1},
        {"environ": {"HA_BEAT_LEASE_TTL": "10s"}},
        "a number of seconds from 1 to 3600",
    ),
    "ha_beat_renew_interval=3.0": (
        {"environ": {"HA_BEAT_LEASE_TTL": "4"}, "renew_interval": 2},
        {"environ": {"HA_BEAT_LEASE_TTL": "4"}, "renew_interval": 3},
        "at most half of HA_BEAT_LEASE_TTL (4.0)",
    ),
}


@pytest.mark.parametrize("named", RELATIONS)
def test_message_names_settings_as_the_user_spelled_them(named):
    """The accepted values are the last before the limit."""
    accepted, refused, right = RELATIONS[named]
    load(**accepted)
    assert complaint(**refused) == f"{named}: must be {right}"


@pytest.mark.parametrize(
    ("key", "nearest"),
    [
        ("HA_BEAT_LEASE_TLL", "HA_BEAT_LEASE_TTL"),
        ("HA_BEAT_RENEW", "HA_BEAT_RENEW_INTERVAL"),
        ("ha_beat_misfires", "ha_beat_misfire"),
        ("CELERY_HA_BEAT_HTTP_PORT", "CELERY_HA_BEAT_HTTP_BIND"),
    ],
)
def test_unknown_setting_is_refused_with_the_nearest_name(key, nearest):
    conf, environ = ({}, {key: "secret"}) if key.startswith("HA_") else ({key: "secret"}, {})
    with pytest.raises(ConfigurationError) as caught:
        Settings.load(conf, environ, "shop")
    assert str(caught.value) == f"{key}: unknown setting; the nearest known name is {nearest}"


def test_all_faults_are_reported_at_once():
    message = complaint({"HA_BEAT_BATCH": "5", "HA_BEAT_MISFIRE": "no"}, lease_ttl=0, journal_size=1)
    named = ["HA_BEAT_BATCH", "ha_beat_lease_ttl", "HA_BEAT_MISFIRE", "ha_beat_journal_size"]
    assert [re.split("[:=]", line)[0] for line in message.splitlines()] == named


def test_app_name_that_cannot_name_a_cluster_is_refused():
    with pytest.raises(ConfigurationError, match=r"\Aha_beat_cluster: .*the app's name 'my app' cannot stand in.*\Z"):
        Settings.load({}, {}, "my app")
    with pytest.raises(ConfigurationError, match="ha_beat_cluster: not set, and the app has no name"):
        Settings.load({}, {}, "")
    assert Settings.load({"ha_beat_cluster": "mine"}, {}, "my app").cluster == "mine"


# --- Arbitrary input

ANYTHING = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(), st.binary(), st.timedeltas()),
    *(st.lists(st.integers()), st.dictionaries(st.text(), st.text())),
)


@given(st.dictionaries(st.sampled_from([f"ha_beat_{name}" for name in NAMES]) | st.text(), ANYTHING))
def test_any_value_in_the_app_is_validated(conf):
    try:
        settings = Settings.load(conf, {}, "shop")
    except ConfigurationError as error:
        assert all("\n" not in line and len(line) < 500 for line in str(error).split("\n"))
    else:
        assert 1 <= settings.lease_ttl <= 3600
        assert 0 < settings.renew_interval <= settings.lease_ttl / 2
        assert Settings.load({f"ha_beat_{name}": getattr(settings, name) for name in NAMES}, {}, "x") == settings


@given(st.dictionaries(st.sampled_from([f"HA_BEAT_{name.upper()}" for name in NAMES]), st.text()))
def test_any_text_in_a_variable_is_validated(environ):
    try:
        settings = Settings.load({}, environ, "shop")
    except ConfigurationError as error:
        assert str(error)
    else:
        assert repr(settings)
