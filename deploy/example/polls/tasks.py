"""Tasks of the schedule in ``example/settings.py``."""

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
    """Log the number of sessions that have not expired."""
    logger.info("%d sessions have not expired", Session.objects.filter(expire_date__gt=timezone.now()).count())
