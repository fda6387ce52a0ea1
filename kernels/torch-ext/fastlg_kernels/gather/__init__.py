"""Maps of a feature cache as a crop and a flip would have left them, read and resized in one pass."""

from .api import gather_maps, map_boxes

__all__ = ["gather_maps", "map_boxes"]
