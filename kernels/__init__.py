"""The hot tensor operations: one folder an operation, each with its naive definition as oracle."""

# What `decoding doctor` reports on.
OPERATIONS = ("degeneration penalty", "selection", "contrast", "layer divergence", "few-query attention")
