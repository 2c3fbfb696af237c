"""Files, checkpoints and run folders: written atomically, read without executing anything."""
