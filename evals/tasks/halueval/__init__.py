"""HaluEval (Li et al., EMNLP 2023, 2305.11747)."""
