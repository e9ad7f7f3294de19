"""Long work that outlives whoever started it: a detached process, a directory, a lock, and events on the disk."""
