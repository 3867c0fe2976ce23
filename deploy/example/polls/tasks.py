"""The tasks that the schedule in ``example/settings.py`` names."""

from celery import shared_task
from celery.utils.log import get_task_logger
from django.contrib.sessions.models import Session
from django.core.management import call_command
from django.utils import timezone

logger = get_task_logger(__name__)


@shared_task
def task_clear_session() -> None:
    """Delete the sessions that have expired."""
    call_command("clearsessions")


@shared_task
def task_count_sessions() -> None:
    """Log how many sessions are alive."""
    logger.info("%d sessions are alive", Session.objects.filter(expire_date__gt=timezone.now()).count())
