"""The commands of evaluations: their options, and what runs. Each imports its work when it runs."""
