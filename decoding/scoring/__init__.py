"""Log-scores of given texts under a strategy."""
