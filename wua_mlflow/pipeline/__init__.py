"""The steps of a run in one process: train, analyze, slim, compare, publish."""
