"""Data sources: the synthetic world, camera folders, nuScenes and KITTI."""
