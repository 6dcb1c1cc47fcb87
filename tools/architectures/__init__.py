"""Every causal language model type of transformers, built tiny, against full recomputation."""
