"""Capabilities that a model was found to have: branching, chunked prefill, CUDA graphs."""
