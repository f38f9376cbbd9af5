"""Command-line entry points, one module per job: parse the options, call a pipeline, print the results."""
