"""What is submitted to a cluster: a file a job, which parses options, makes one call and prints what came of it."""
