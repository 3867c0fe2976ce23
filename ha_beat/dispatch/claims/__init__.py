"""Claims: what is written before and after a message is sent to a broker that is not the lease's Redis."""
