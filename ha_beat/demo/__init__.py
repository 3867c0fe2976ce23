"""``ha-beat demo``: three replicas and a worker on an embedded Redis, and the leader killed before your eyes.

The demo does not take a replica's word. It counts what the worker ran, and compares that with the grid on
which the schedule's entries fall due, and with the verdicts in the journal:

=============  =======================================================================
``counting``   pure: runs, verdicts, faults and leaders in; duplicates and misses out
``faults``     which fault comes next
``processes``  the server, the replicas and the worker as child processes
``observer``   reads lease, members, journal and runs from the embedded Redis
``show``       the loop that ties them together
``scene``      what there is to see: one moment, in plain values
``live``       a view that changes in place; ``plain``: one line for each event
``app``        the Celery app that the child processes run
``command``    the command line
=============  =======================================================================
"""
