"""Scores, baselines, comparisons, costs and published figures, with their tables and drawings."""
