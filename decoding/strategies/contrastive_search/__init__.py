"""Contrastive search."""
