"""The settings: one definition, from which come parsing, validation, the types and the table of the documentation.

Two sources, the lowest first: keys of the Celery app (`ha_beat_lease_ttl`; with Django and `namespace="CELERY"` that is
`CELERY_HA_BEAT_LEASE_TTL`), and the environment (`HA_BEAT_LEASE_TTL`), which wins.

`python -m ha_beat.settings` prints the table.
"""

from ha_beat.settings.definition import SETTINGS, Setting, SettingInUse, Settings, settings_table
from ha_beat.settings.redaction import redact_url
from ha_beat.settings.sources import ha_beat_keys

__all__ = ["SETTINGS", "Setting", "SettingInUse", "Settings", "ha_beat_keys", "redact_url", "settings_table"]
