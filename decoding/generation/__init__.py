"""The way from a strategy to ``generate()``: session, token loop, logits processor."""
