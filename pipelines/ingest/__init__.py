"""Ingest on Ray: from raw archives to a data set in Parquet."""
