"""Integration of redbeat: a scheduler that is due by the ledger, and keeps its entries where redbeat keeps them.

Import the scheduler from :mod:`ha_beat.redbeat.schedulers`.
"""
