"""Read KITTI's object and road benchmarks (Geiger, Lenz and Urtasun 2012; Fritsch, Kuehnl and Geiger 2013)."""

from bevreshape.data.sources.kitti.object import KITTIObjectSource
from bevreshape.data.sources.kitti.road import KITTIRoadSource

__all__ = ["KITTIObjectSource", "KITTIRoadSource"]
