"""Beats of a site."""

from typing import Any

from tests.faults.cluster import BeatCluster, Replica
from tests.integration.django.conftest import Site

HA = "ha_beat.django.schedulers:HADatabaseScheduler"
STOCK = "django_celery_beat.schedulers:DatabaseScheduler"


def beats(site: Site, replicas: int = 2, scheduler: str = HA, **options: Any) -> BeatCluster:
    """Return beats of the site; `django` are Django settings, the other options are `BeatCluster`'s."""
    django = options.pop("django", {})
    env = {**site.env(**django), **options.pop("env", {})}
    return BeatCluster(
        site.redis.url,
        replicas=replicas,
        scheduler=scheduler,
        app="tests.integration.django.project.app",
        cluster="site",
        env=env,
        **options,
    )


def kill_leader(cluster: BeatCluster) -> Replica:
    """Kill the leader and wait for the next one. Return the killed replica."""
    leader = cluster.wait_for_leader()
    leader.kill()
    cluster.wait_for_leader(other_than=leader)
    return leader
