"""The tests' Django project; as Celery's documentation has it, the app is made with it."""

from tests.integration.django.project.app import app

__all__ = ["app"]
