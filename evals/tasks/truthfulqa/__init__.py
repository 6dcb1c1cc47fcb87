"""TruthfulQA (Lin et al., ACL 2022, 2109.07958): its data, prompts, tasks and metrics."""
