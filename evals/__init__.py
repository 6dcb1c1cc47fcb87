"""What a decoding strategy is worth: evaluations, metrics and the embedded miniature."""
