"""Parts that run in workers: the reports that a message has ended, and the connection for them and the guard."""
