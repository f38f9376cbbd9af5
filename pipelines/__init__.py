"""The distributed part of each job, on Ray: ingest, training, evaluation, comparison and inference."""
