"""Strategies side by side on prompts."""
