"""Reports: rows of runs, and what they say in tables, heatmaps and curves."""
