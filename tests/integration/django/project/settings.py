"""Django's settings for the tests. SITE_DATABASE (JSON) is the database, SITE_SETTINGS (JSON) overrides the rest."""

import json
import os

SECRET_KEY = "for tests only"
ALLOWED_HOSTS = ["*"]
DEBUG = False
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "ha_beat.django",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ]
        },
    }
]
ROOT_URLCONF = "tests.integration.django.project.urls"
STATIC_URL = "static/"
DATABASES = {
    "default": json.loads(os.environ.get("SITE_DATABASE") or "null")
    or {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}
}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]

CELERY_BEAT_SCHEDULER = "ha_beat.django.schedulers:HADatabaseScheduler"
CELERY_BROKER_URL = os.environ.get("BROKER_URL", "memory://")
CELERY_TASK_IGNORE_RESULT = True
CELERY_RESULT_EXPIRES = None  # without the entry that cleans up results
CELERY_TIMEZONE = "UTC"
CELERY_HA_BEAT_CLUSTER = "site"

globals().update(json.loads(os.environ.get("SITE_SETTINGS") or "{}"))
