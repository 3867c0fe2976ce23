"""``ha-beat demo``: three replicas and a worker on an embedded Redis, with a leader that keeps failing.

The demo does not rely on the replicas' own statements. It counts what the worker ran, and compares that with the due
instants of the schedule and with the verdicts in the journal.

==================  ===================================================================
``tally``           pure: runs, verdicts, faults and leaders in; duplicates and misses out
``fault_order``     which fault comes next
``processes``       the server, the replicas and the worker as child processes
``observer``        reads lease, members, journal and runs from the embedded Redis
``cluster_state``   state of the replicas, by the observations
``fault_injector``  kills, pauses, stops and restarts replicas
``runner``          the loop that ties them together
``view_model``      the values that a view shows
``live``            a view that changes in place; ``plain``: one line per event
``app``             the Celery app that the child processes run
``command``         the command line
==================  ===================================================================
"""
