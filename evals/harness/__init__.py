"""Strategies inside lm-evaluation-harness (the package ``lm_eval``): a model class, tasks, and ``decoding lm-eval``."""
