"""Data sets: reading, splitting, scaling, batching, and the task that they pose."""
