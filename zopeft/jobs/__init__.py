"""Jobs: what a command does, from a checked recipe to a finished run."""
