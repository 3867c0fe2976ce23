"""Rules of the schedule, without I/O: when an entry is due, and which overdue occurrences are enqueued."""
