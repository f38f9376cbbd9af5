"""What is submitted to a cluster: one short file a job, a dataclass for its options."""
