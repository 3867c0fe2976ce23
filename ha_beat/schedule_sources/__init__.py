"""Schedule sources: they provide the entries of a Celery scheduler class to the leader.

``source.py`` has the base class. ``entry_source.py`` is for classes that hold their entries in memory, and
``stored_source.py`` for those whose entries other programs edit in a database or in Redis.
"""
