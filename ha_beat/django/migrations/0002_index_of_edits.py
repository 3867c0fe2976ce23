"""Index with which the rows that were saved last are found without a pass over django-celery-beat's table."""

from __future__ import annotations

from typing import Any

from django.db import migrations, models
from django.db.migrations.operations.base import Operation


class AddIndexOfEdits(Operation):
    """Index on ``date_changed``. It is not part of the state, so django-celery-beat's own migrations know none.

    On PostgreSQL writers do not wait while it is made.
    """

    _index = models.Index(fields=["date_changed"], name="ha_beat_date_changed")

    def state_forwards(self, app_label: str, state: Any) -> None:
        """Change nothing."""

    def database_forwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Create the index in the database that has the table. Replace one that an interrupted migration left."""
        self.database_backwards(app_label, schema_editor, from_state, to_state)
        model = self._model(schema_editor, to_state)
        if model:
            schema_editor.add_index(model, self._index, **self._options(schema_editor))

    def database_backwards(self, app_label: str, schema_editor: Any, from_state: Any, to_state: Any) -> None:
        """Remove the index if it exists."""
        model = self._model(schema_editor, to_state)
        if model and self._exists(schema_editor, model):
            schema_editor.remove_index(model, self._index, **self._options(schema_editor))

    def describe(self) -> str:
        """Return the description that ``migrate --plan`` shows."""
        return "Create an index on date_changed of django_celery_beat's periodic tasks"

    def _model(self, schema_editor: Any, state: Any) -> Any:
        """Return the model of the rows, ``None`` if the table is in another database."""
        model = state.apps.get_model("django_celery_beat", "PeriodicTask")
        return model if self.allow_migrate_model(schema_editor.connection.alias, model) else None

    def _exists(self, schema_editor: Any, model: Any) -> bool:
        if schema_editor.collect_sql:
            return False
        connection = schema_editor.connection
        with connection.cursor() as cursor:
            table = model._meta.db_table  # noqa: SLF001 -- Django's documented way
            return self._index.name in connection.introspection.get_constraints(cursor, table)

    def _options(self, schema_editor: Any) -> dict[str, bool]:
        connection = schema_editor.connection
        concurrently = connection.vendor == "postgresql" and not connection.in_atomic_block
        return {"concurrently": True} if concurrently else {}


class Migration(migrations.Migration):
    """Create the index."""

    # PostgreSQL makes an index beside writers only outside of a transaction.
    atomic = False

    dependencies = [
        ("ha_beat", "0001_initial"),
        ("django_celery_beat", "0019_alter_periodictasks_options"),
    ]

    operations = [AddIndexOfEdits()]
