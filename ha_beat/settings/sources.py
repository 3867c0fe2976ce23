"""Sources of settings: the Celery app and the environment."""

from __future__ import annotations

import os
import re
import socket
from collections.abc import Iterable, Mapping

APP_PREFIX = "ha_beat_"
_ENV_PREFIX = "HA_BEAT_"
_NOT_IN_A_NAME = re.compile(r"[\s\x00-\x1f\x7f]")

_APP_KEY = re.compile(r"(?:[a-z][a-z0-9]*_)*?ha_beat_(\w+)", re.IGNORECASE)


def ha_beat_keys(conf: Mapping[str, object]) -> dict[str, object]:
    """Return the ha_beat settings of a Celery app (`app.conf`), by the names that the user gave them.

    It finds `ha_beat_x` and `HA_BEAT_X`, and both behind the app's namespace (`CELERY_HA_BEAT_X` in Django). If a
    setting is given more than once, Celery's own order decides: changes on `app.conf` win over the configuration
    module, and names with the namespace win over those without.
    """
    conf.get(APP_PREFIX)  # Celery loads its configuration when a key is read, not when keys are listed
    prefix = str(getattr(conf, "prefix", None) or "CELERY_").lower()
    found: dict[str, tuple[str, object]] = {}
    for layer in getattr(conf, "maps", None) or [conf]:
        # Only the keys: reading every value of a Django settings object warns and can fail.
        keys = [str(key) for key in layer if str(key).lower().removeprefix(prefix).startswith(APP_PREFIX)]
        for key in sorted(keys, key=lambda key: not key.lower().startswith(prefix)):
            found.setdefault(key.lower().removeprefix(prefix), (key, layer[key]))
    return dict(found.values())


def from_app(conf_values: Mapping[str, object]) -> Iterable[tuple[str, str, object]]:
    """Yield each setting as the user's spelling, its name, and its value."""
    for key in conf_values:
        if match := _APP_KEY.fullmatch(str(key)):
            yield str(key), match[1].lower(), conf_values[key]


def from_environment(environ: Mapping[str, str]) -> Iterable[tuple[str, str, object]]:
    """Yield each setting as the variable, its name, and its value. An empty variable counts as not set."""
    services = {
        name.removesuffix("_SERVICE_HOST")
        for name in environ
        if name.startswith("HA_BEAT") and name.endswith("_SERVICE_HOST")
    }
    for variable, value in environ.items():
        if not variable.startswith(_ENV_PREFIX) or not value.strip():
            continue
        # If a service is named ha-beat, Kubernetes sets HA_BEAT_SERVICE_HOST, HA_BEAT_PORT and others in every pod.
        if any(variable.startswith((f"{service}_SERVICE_", f"{service}_PORT")) for service in services):
            continue
        yield variable, variable.removeprefix(_ENV_PREFIX).lower(), value


def replica_name(environ: Mapping[str, str]) -> str:
    """Return the default name of this process: the pod's or host's name, and the pid."""
    host = environ.get("POD_NAME") or environ.get("HOSTNAME") or socket.gethostname()
    return f"{_NOT_IN_A_NAME.sub('-', host)[:180]}:{os.getpid()}"
