"""``ha-beat demo``: three replicas and a worker on an embedded Redis, with a leader that keeps failing.

The demo does not rely on the replicas' own statements. It counts what the worker ran, and compares that with the due
instants of the schedule and with the verdicts in the journal.
"""
