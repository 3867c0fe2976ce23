"""ha_beat for Django: django-celery-beat's schedule, highly available, and the cluster in Django's admin.

Add ``"ha_beat.django"`` to ``INSTALLED_APPS`` after ``"django_celery_beat"``. The scheduler is
``ha_beat.django.schedulers:HADatabaseScheduler``; on the command line ``-S ha_beat.django`` will do.
Importing this package alone imports neither Django nor Celery.
"""
