"""Inference on Ray: from photos to predictions in Parquet."""
