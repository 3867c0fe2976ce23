"""Settings. One definition provides parsing, validation, types and the table in the documentation.

There are two sources: keys of the Celery app (`ha_beat_lease_ttl`, or `CELERY_HA_BEAT_LEASE_TTL` in Django with
`namespace="CELERY"`), and the environment (`HA_BEAT_LEASE_TTL`), which wins.
"""

from ha_beat.settings.definition import SETTINGS, Derived, Setting, SettingInUse, Settings
from ha_beat.settings.redaction import redact_url, secrets_in
from ha_beat.settings.sources import ha_beat_keys

__all__ = ["SETTINGS", "Derived", "Setting", "SettingInUse", "Settings", "ha_beat_keys", "redact_url", "secrets_in"]
