"""Estimate the pose of a camera from marks on flat ground, for ``calibrate_plane.py``."""
