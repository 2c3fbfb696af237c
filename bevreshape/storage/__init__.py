"""Files, checkpoints and run folders: written whole or not at all, read without executing anything."""
