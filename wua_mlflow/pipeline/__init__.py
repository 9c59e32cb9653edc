"""The steps of the use case, in one process, and what they read: data, models, configurations."""
