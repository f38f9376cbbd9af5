"""The work of the jobs on Ray: ingest, training, evaluation, comparison and inference."""
