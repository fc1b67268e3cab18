"""Statistics of levels."""

from hessrmt.levels.ratios import mean_ratio, ratios

__all__ = ["mean_ratio", "ratios"]
