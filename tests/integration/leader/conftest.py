"""Leader on the shared Redis."""

import pytest

from tests.integration.leader.stepped_leader import Leader
from tests.support.servers import RedisServer


@pytest.fixture
def leader(shared_redis: RedisServer) -> Leader:
    return Leader(shared_redis)
