"""Is the candidate as good as the baseline: intervals, outcomes, required sample sizes."""
