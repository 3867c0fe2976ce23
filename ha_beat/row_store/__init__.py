"""Schedules kept as rows of a database: reading, writing of run state, and the entries of the settings.

A store (:mod:`ha_beat.django`, :mod:`ha_beat.sqlalchemy`) adds the statements: :mod:`ha_beat.row_store.backend` lists
them. Everything else is here: when rows are read, how their run state is written, and which of them are set aside.
"""
