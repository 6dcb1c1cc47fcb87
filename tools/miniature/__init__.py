"""How the models of :mod:`decoding.evals.miniature` were trained."""
