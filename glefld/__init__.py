"""Fashion landmark detection: the library. Plain PyTorch, usable without Ray and without MLflow."""

__version__ = "0.1.0"
