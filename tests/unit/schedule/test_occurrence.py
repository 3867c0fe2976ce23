"""Identity of an occurrence: its task id and the spelling of its instant."""

import uuid
from datetime import UTC, datetime, timedelta, timezone

from ha_beat.schedule.occurrence import Occurrence

NOON = datetime(2030, 1, 1, 12, tzinfo=UTC)


def test_task_id_is_the_same_in_each_replica_and_version():
    assert Occurrence("report", NOON).task_id("shop") == "67d41eec-99fe-57d9-a53b-c011bf76d0d5"


def test_task_id_differs_by_cluster_entry_and_instant():
    ids = {Occurrence("report", NOON).task_id(cluster) for cluster in ("shop", "shop2")}
    others = ("report2", NOON), ("report", NOON + timedelta(minutes=1)), ("report", NOON + timedelta(microseconds=1))
    ids |= {Occurrence(*other).task_id("shop") for other in others}
    assert len(ids) == 5
    assert {uuid.UUID(task_id).version for task_id in ids} == {5}


def test_instant_has_one_spelling():
    assert Occurrence("e", NOON).instant == "2030-01-01T12:00:00.000000+00:00"
    assert Occurrence("e", NOON + timedelta(microseconds=5)).instant == "2030-01-01T12:00:00.000005+00:00"
    elsewhere = NOON.astimezone(timezone(timedelta(hours=2))).astimezone(UTC)
    assert Occurrence("e", elsewhere).task_id("c") == Occurrence("e", NOON).task_id("c")
