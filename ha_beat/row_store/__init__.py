"""Schedules kept as rows of a database.

:mod:`ha_beat.row_store.backend` lists the connections, queries and statements that a store (:mod:`ha_beat.django`,
:mod:`ha_beat.sqlalchemy`) provides. This package decides when to read and write, and handles rows that fail.

- Reading: ``reader`` (changes), ``differences`` and ``full_read`` (changes that leave no other trace), ``table``.
- Writing: ``writer`` (queue), ``updates`` (transactions), ``failed_rows`` (retries), ``static_entries``.
- Both: ``sync`` (a thread for each), ``source`` (connection to the main loop).
"""
