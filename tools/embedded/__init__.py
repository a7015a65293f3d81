"""The generator of the embedded model: its corpus, its samples, its training."""
