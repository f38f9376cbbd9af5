"""Ray Data graphs: raw archives to Parquet, and photos to predictions."""
