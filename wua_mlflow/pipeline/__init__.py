"""The steps of the use case, run in one process, and what they read: data, models, configurations."""
