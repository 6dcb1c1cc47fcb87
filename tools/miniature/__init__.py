"""Training of the models of :mod:`decoding.evals.miniature`."""
