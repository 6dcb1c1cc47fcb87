"""Tensor operations of the decoding steps: one folder an operation, each with its definition in float64 as oracle."""

# Reported by `decoding doctor`.
OPERATIONS = ("degeneration penalty", "selection", "contrast", "layer divergence", "few-query attention")
