"""What a model was found to do: branching, chunked prefill, CUDA graphs."""
