"""Servers of other projects with strategies."""
