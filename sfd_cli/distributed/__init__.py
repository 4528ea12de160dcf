"""Several processes at one command: starting them, meeting, sharing the work, and noticing who is lost."""
