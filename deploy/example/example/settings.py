"""Settings of the example project. These environment variables change them:

=====================  ===============================================  =====================================
variable               meaning                                          default
=====================  ===============================================  =====================================
REDIS_URL              Celery's broker, which also holds the lease      redis://127.0.0.1:6379/0
DATABASE_URL           Django's database                                an SQLite file beside ``manage.py``
SCHEDULE               ``static`` (the schedule is in this file) or     static
                       ``database`` (it is edited in the admin)
SECRET_KEY             Django's signing key                             a key for development only
DEBUG                  1 for Django's debug pages                       0
ALLOWED_HOSTS          host names of the site, separated by commas      localhost,127.0.0.1
=====================  ===============================================  =====================================
"""

import os
from pathlib import Path
from urllib.parse import quote

import django
from celery.schedules import crontab, solar

from example.database import database_from_url

BASE_DIR = Path(__file__).resolve().parent.parent

SECRET_KEY = os.environ.get("SECRET_KEY", "insecure-and-for-development-only")
DEBUG = os.environ.get("DEBUG", "0") == "1"
ALLOWED_HOSTS = os.environ.get("ALLOWED_HOSTS", "localhost,127.0.0.1").split(",")

INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.messages",
    "django.contrib.sessions",
    "django.contrib.staticfiles",
    "django_celery_beat",
    "ha_beat.django",
    "polls",
]
MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
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
ROOT_URLCONF = "example.urls"
WSGI_APPLICATION = "example.wsgi.application"
STATIC_URL = "static/"

DATABASES = {
    "default": database_from_url(os.environ.get("DATABASE_URL") or f"sqlite:///{quote(str(BASE_DIR / 'db.sqlite3'))}")
}
if DATABASES["default"]["ENGINE"].endswith("sqlite3"):
    # Several processes share the file: writers wait for each other, readers for none.
    DATABASES["default"]["OPTIONS"] = {"timeout": 20}
    if django.VERSION >= (5, 1):
        in_turn = {"transaction_mode": "IMMEDIATE", "init_command": "PRAGMA journal_mode=WAL"}
        DATABASES["default"]["OPTIONS"].update(in_turn)
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
SESSION_ENGINE = "django.contrib.sessions.backends.db"

# Without DEBUG, Django would only mail the errors of a request.
LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "handlers": {"console": {"class": "logging.StreamHandler"}},
    "loggers": {"django.request": {"handlers": ["console"], "level": "ERROR"}},
}

USE_TZ = True
TIME_ZONE = "UTC"

CELERY_BROKER_URL = os.environ.get("REDIS_URL", "redis://127.0.0.1:6379/0")
CELERY_BROKER_CONNECTION_RETRY_ON_STARTUP = True
CELERY_TASK_IGNORE_RESULT = True
CELERY_TIMEZONE = TIME_ZONE

# With ``database``, the leader writes the entries below to the database; edit them in the admin from then on.
CELERY_BEAT_SCHEDULER = {
    "static": "ha_beat.scheduler:HAScheduler",
    "database": "ha_beat.django.schedulers:HADatabaseScheduler",
}[os.environ.get("SCHEDULE", "static")]
CELERY_BEAT_SCHEDULE = {
    "clear-sessions": {
        "task": "polls.tasks.task_clear_session",
        "schedule": 5.0,
    },
    "count-sessions-every-quarter": {
        "task": "polls.tasks.task_count_sessions",
        "schedule": crontab(minute="*/15"),
    },
    "count-sessions-at-sunset": {
        "task": "polls.tasks.task_count_sessions",
        "schedule": solar("sunset", 37.7749, -122.4194),  # San Francisco
        "options": {"expires": 3600},
    },
}
