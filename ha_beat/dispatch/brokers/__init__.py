"""Brokers: the connections, and one adapter for each kind of broker."""
