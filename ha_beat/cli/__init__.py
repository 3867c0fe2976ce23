"""The command lines: ``ha-beat`` on its own."""
