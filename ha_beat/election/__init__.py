"""Election of the leader.

``state_machine`` decides (with ``free_lease``, on the values of ``states``), and ``elector`` is the thread that carries
out the decisions: ``lease_commands`` asks the store, ``presence_keeper`` keeps the presence connection, and
``standby_follower`` keeps the shadow up to date. ``connectivity`` tracks outages of Redis, ``cluster_clock`` the
scheduling time. The main loop uses ``leader_handle``.
"""
