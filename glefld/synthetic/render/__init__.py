"""Rendering photos of garments with their annotations. The entry points are in ``photo`` and ``outfit``."""
