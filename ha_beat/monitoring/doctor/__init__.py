"""Checks of a cluster's configuration and state, from outside."""
