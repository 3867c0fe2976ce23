"""Batches of due entries: how they are built, submitted and answered."""
