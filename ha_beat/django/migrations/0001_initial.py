"""Model of the page "Beat cluster". It has no table."""

from __future__ import annotations

from django.db import migrations, models


class Migration(migrations.Migration):
    """Create the model, which has permissions only."""

    initial = True

    dependencies = []

    operations = [
        migrations.CreateModel(
            name="Cluster",
            fields=[
                ("id", models.BigAutoField(auto_created=True, primary_key=True, serialize=False, verbose_name="ID")),
            ],
            options={
                "verbose_name": "beat cluster",
                "verbose_name_plural": "beat cluster",
                "permissions": (
                    ("control_cluster", "Can step down, pause and resume the beat cluster, and run tasks now"),
                ),
                "managed": False,
                "default_permissions": ("view",),
            },
        ),
    ]
