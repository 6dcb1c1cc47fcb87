"""Questions whose context contradicts what a model remembers."""
