"""Migrations: the model of the page, and an index on django-celery-beat's table."""

from io import StringIO
from typing import Any

import pytest
from django.contrib.auth.models import Permission
from django.core.management import call_command
from django.db import connection
from django.db.migrations.recorder import MigrationRecorder
from django.test import override_settings
from django.utils import translation
from django_celery_beat.models import PeriodicTask

INDEX = "ha_beat_date_changed"


def indexes() -> set[str]:
    with connection.cursor() as cursor:
        found = connection.introspection.get_constraints(cursor, PeriodicTask._meta.db_table)
    return {name for name, fields in found.items() if fields["columns"] == ["date_changed"]}


def migrate(target: str) -> None:
    call_command("migrate", "ha_beat", target, verbosity=0)


class OtherTables:
    """Router that keeps django-celery-beat's tables out of every database."""

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        return False if app_label == "django_celery_beat" else None


@pytest.mark.parametrize("language", ["en-us", "de"])
@pytest.mark.parametrize("translates", [True, False])
def test_models_have_no_changes_without_a_migration(site, language, translates):
    with override_settings(USE_I18N=translates, LANGUAGE_CODE=language), translation.override(language):
        # Exits with 1 if there are changes.
        call_command("makemigrations", "ha_beat", "django_celery_beat", check_changes=True, dry_run=True, verbosity=0)
    permissions = Permission.objects.filter(content_type__app_label="ha_beat").values_list("codename", flat=True)
    assert set(permissions) == {"view_cluster", "control_cluster"}


def test_index_is_created_and_removed_with_its_migration(any_site):
    assert indexes() == {INDEX}
    migrate("0001")
    assert indexes() == set()
    with override_settings(DATABASE_ROUTERS=[OtherTables()]):
        # The table may be in another database.
        migrate("0002")
        assert indexes() == set()
        migrate("0001")
    migrate("0002")
    # As after a migration that was interrupted.
    MigrationRecorder(connection).record_unapplied("ha_beat", "0002_index_of_edits")
    migrate("0002")
    assert indexes() == {INDEX}


def test_writers_do_not_wait_for_the_index_on_postgresql(postgres_site):
    migrate("0001")
    shown = StringIO()
    call_command("sqlmigrate", "ha_beat", "0002", stdout=shown)
    migrate("0002")
    assert "CREATE INDEX CONCURRENTLY" in shown.getvalue()
    assert "BEGIN" not in shown.getvalue()
