"""View transformers for bird's-eye-view perception, under one protocol.

Letters in shape comments, in the whole package:

=====  ==================================================================
b      samples in a batch
n      cameras of a rig
c      channels of camera features
d      channels of BEV features
h, w   height and width of a feature map; tokens of a camera are h·w
H, W   height and width of an image, in pixels
R, C   rows and columns of the BEV feature map; BEV queries are R·C
k      classes
p      points
=====  ==================================================================

``rows`` and ``cols`` are the cells of the BEV grid that targets live on. Row 0 is farthest ahead, column 0 farthest
left.
"""

__version__ = "0.1.0"
