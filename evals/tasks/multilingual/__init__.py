"""Generation in many languages: open-ended text, translation, summaries, code."""
