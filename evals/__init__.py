"""Evaluations of decoding strategies, metrics, and the embedded miniature."""
