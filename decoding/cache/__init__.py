"""Key-value caches that grow in place, and other states of a model."""
