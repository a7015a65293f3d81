"""The shipped recipes: one folder a model, one file a job."""
