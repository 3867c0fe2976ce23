"""Command lines: ``celery -A proj ha-beat`` and ``ha-beat``."""
