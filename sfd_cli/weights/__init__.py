"""Published weights by name, the cache, and the one door through which models are opened."""
