"""Names of a cluster's keys and channels in Redis."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys and channels of one cluster, under one hash tag."""

    cluster: str

    def _key(self, name: str) -> str:
        return f"{{ha-beat:{self.cluster}}}:{name}"

    @property
    def lease(self) -> str:
        """Return the key of the hash with the lease record."""
        return self._key("lease")

    @property
    def ledger(self) -> str:
        """Return the key of the hash with a row per entry, notes and the cluster's own fields."""
        return self._key("ledger")

    @property
    def journal(self) -> str:
        """Return the key of the stream of occurrences and leader changes."""
        return self._key("journal")

    @property
    def members(self) -> str:
        """Return the key of the hash with a record per replica."""
        return self._key("members")

    @property
    def claims(self) -> str:
        """Return the key of the hash of the occurrences that are claimed and not yet confirmed, by task id."""
        return self._key("claims")

    def guard(self, task_id: str) -> str:
        """Return the key that holds the id of the publish that the workers run."""
        return self._key(f"guard:{task_id}")

    @property
    def busy(self) -> str:
        """Return the key of the hash of the messages that keep an entry from its next occurrence, by entry."""
        return self._key("busy")

    @property
    def dropped(self) -> str:
        """Return the key that counts the messages that the workers' guard has dropped."""
        return self._key("dropped")

    @property
    def store(self) -> str:
        """Return the key of the hash in the broker's Redis that names the store of the lease."""
        return self._key("store")

    @property
    def wake(self) -> str:
        """Return the channel that tells replicas to read the lease."""
        return self._key("wake")

    @property
    def requests(self) -> str:
        """Return the key of the hash of waiting requests to the leader, by request id."""
        return self._key("requests")

    @property
    def progress(self) -> str:
        """Return the key of the hash of the last step that was begun of a waiting request, by request id."""
        return self._key("progress")

    def answer(self, request: str) -> str:
        """Return the key with the answer to one request."""
        return self._key(f"answer:{request}")

    def presence(self, token: str) -> str:
        """Return the channel that one replica subscribes to, as a leader or a standby."""
        return self._key(f"presence:{token}")

    def shard_presence(self, token: str) -> str:
        """Return the same as a shard channel of a Redis Cluster. The scripts know it by its name."""
        return self._key(f"presence:shard:{token}")
