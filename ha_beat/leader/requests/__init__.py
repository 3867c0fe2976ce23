"""Requests to the leader, and one handler for each kind."""
