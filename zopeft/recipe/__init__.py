"""Settings: from YAML and flags to checked dataclasses."""
