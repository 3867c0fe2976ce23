"""ha_beat for Django: a highly available django-celery-beat schedule, and the cluster in Django's admin.

Add ``"ha_beat.django"`` to ``INSTALLED_APPS`` after ``"django_celery_beat"``. The scheduler is
``ha_beat.django.schedulers:HADatabaseScheduler``, or ``-S ha_beat.django`` on the command line.
Importing this package alone imports neither Django nor Celery.
"""
