"""Names of a cluster's keys and channels in Redis."""

from __future__ import annotations


class Keys:
    """Keys and channels of one cluster, under one hash tag."""

    def __init__(self, cluster: str) -> None:
        self.cluster = cluster
        self._prefix = f"{{ha-beat:{cluster}}}:"
        #: Hash: the lease record.
        self.lease = self._key("lease")
        #: Hash: a row for each entry, notes, and fields of the cluster.
        self.ledger = self._key("ledger")
        #: Stream: verdicts of occurrences and changes of leader.
        self.journal = self._key("journal")
        #: Hash: a record for each replica.
        self.members = self._key("members")
        #: Hash: the claims that are neither confirmed nor resolved, by task id.
        self.claims = self._key("claims")
        #: Hash: the messages that keep an entry busy, by entry.
        self.busy = self._key("busy")
        #: Counter: the messages that the workers' guard has dropped.
        self.dropped = self._key("dropped")
        #: Hash in the broker's Redis: the lease marker, which names the lease's store.
        self.store = self._key("store")
        #: Hash: the waiting requests to the leader, by request id.
        self.requests = self._key("requests")
        #: Hash: the last step that was begun of each waiting request, by request id.
        self.progress = self._key("progress")
        #: Channel: tells replicas to read the lease.
        self.wake = self._key("wake")

    def _key(self, name: str) -> str:
        return self._prefix + name

    def guard(self, task_id: str) -> str:
        """Return the key that holds the id of the publish that the workers run."""
        return self._key(f"guard:{task_id}")

    def answer(self, request_id: str) -> str:
        """Return the key of the answer to a request."""
        return self._key(f"answer:{request_id}")

    def presence(self, token: str) -> str:
        """Return the channel that one replica subscribes to, as a leader or a standby."""
        return self._key(f"presence:{token}")

    def shard_presence(self, token: str) -> str:
        """Return the shard channel for presence in a Redis Cluster. The scripts recognise it by its name."""
        return self._key(f"presence:shard:{token}")
