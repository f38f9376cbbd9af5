"""Rendered raw archives in the benchmarks' layouts, on request with faults."""
