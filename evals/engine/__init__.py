"""The evaluation engine: runs tasks, keeps samples, reports results."""
