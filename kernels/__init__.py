"""The hot tensor operations: one folder an operation, each with its naive definition as oracle."""
