"""``ha-beat demo``: three replicas and a worker on an embedded Redis, with a leader that keeps failing.

The demo counts what the worker ran. It compares the runs with the due instants of the schedule and with the verdicts in
the journal, and does not rely on what the replicas report.
"""
