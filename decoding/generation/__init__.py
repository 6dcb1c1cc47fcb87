"""How a strategy becomes ``generate()``: session, token loop, logits processor."""
