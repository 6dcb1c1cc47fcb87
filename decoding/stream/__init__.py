"""A stream: one model reading one batch of rows, able to branch."""
