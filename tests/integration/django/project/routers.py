"""For projects that have django-celery-beat's tables in a database of their own."""

from typing import Any


class BeatElsewhere:
    """The database `beat` has django-celery-beat's models and no others."""

    def db_for_read(self, model: Any, **_: Any) -> str | None:
        return "beat" if model._meta.app_label == "django_celery_beat" else None

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **_: Any) -> bool:
        return (db == "beat") == (app_label == "django_celery_beat")
