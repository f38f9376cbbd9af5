"""Ingested data sets: opening, reading, loading and augmenting them, and their truth as tensors."""
