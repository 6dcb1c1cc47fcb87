"""The documentation site: ``make docs`` builds it with mkdocs, from docs/, the pages beside it, and the docstrings."""
