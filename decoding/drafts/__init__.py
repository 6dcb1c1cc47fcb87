"""Drafts: tokens proposed ahead, which all readers read in one pass; the strategy's own scores decide which stay."""
