"""Fashion landmark detection: the library. Plain PyTorch, usable without Ray and without MLflow."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from glefld.landmarks import Landmarks

__version__ = "0.1.0"
__all__ = ["Landmarks"]


def __getattr__(name: str) -> Any:
    """Import the Python API, and PyTorch with it, only for those who use it."""
    if name == "Landmarks":
        from glefld.landmarks import Landmarks

        return Landmarks
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
