"""Loading of the schedule into the due queue: when a term begins, after an edit, and after Redis lost its data."""
