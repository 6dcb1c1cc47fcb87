"""What the API reference makes of docstrings: references such as ``:func:`decoding.load``` become links."""

from __future__ import annotations

import html
import re
from typing import Any

import griffe

__all__ = ["References"]

ROLE = re.compile(r":(?:attr|class|data|exc|func|meth|mod|obj):`(~?)([\w.]+)`")


class References(griffe.Extension):
    """Turn Sphinx's roles into links of mkdocs-autorefs; a name that no page shows stays plain code."""

    def on_instance(self, *, obj: griffe.Object, **kwargs: Any) -> None:
        """Rewrite the docstring of an object, as griffe has read it."""
        if obj.docstring:
            obj.docstring.value = ROLE.sub(lambda found: _link(obj, *found.groups()), obj.docstring.value)


def _link(obj: griffe.Object, short: str, name: str) -> str:
    """Return a link to a name: absolute, of the object itself or its class, or of its module."""
    shown = name.rpartition(".")[2] if short else name
    if name.split(".")[0] != obj.package.name:
        scope = obj if obj.is_class or obj.is_module else obj.parent
        name = f"{scope.path if scope else obj.path}.{name}"
    return f'<autoref optional identifier="{html.escape(name)}"><code>{html.escape(shown)}</code></autoref>'
