"""Messages: how one is built, why that fails, and the forms in which it waits until it is sent."""
