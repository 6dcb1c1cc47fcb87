"""Why each token of a text was chosen: what its readers said, what its score is made of, what was rejected."""
