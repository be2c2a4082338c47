"""Run folders: what lies in them, checkpoints, going on, and many of them as a sweep."""
