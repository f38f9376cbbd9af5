"""Drawn photos of garments with their annotation; ``photo.render_photo`` is the way in."""
