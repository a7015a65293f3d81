"""From a checked recipe to a finished run: YAML, dataclasses, objects, jobs."""
