"""Models that the tests of a module share, however often the commands that they run load them."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

__all__ = ["known_models", "models_loaded_once"]


@pytest.fixture(scope="module")
def known_models() -> dict[str, list[Any]]:
    """The models that the tests of a module have loaded."""
    return {}


@pytest.fixture
def models_loaded_once(known_models: dict[str, list[Any]], monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Give a test the models that another test loaded, if their files have not changed: to load and to check one takes
    longer than most tests. What a command does to a model it undoes (tests/decoding/model_as_before).

    A test that loads a model twice gets two, unless it calls this in between: of the next command they are the same.
    """
    from decoding.models import loading

    given: Counter[str] = Counter()

    def once(load: Callable[..., Any]) -> Callable[..., Any]:
        def loaded(source: str, *options: Any) -> Any:
            key = repr((source, options, _files(Path(source))))
            known = known_models.setdefault(key, [])
            if given[key] == len(known):
                known.append(load(source, *options))
            given[key] += 1
            return known[given[key] - 1]

        return loaded

    for name in ("_built_in", "_from_pretrained"):
        monkeypatch.setattr(loading, name, once(getattr(loading, name)))
    return given.clear


def _files(path: Path) -> list[tuple[str, int, int]]:
    """Name, time and size of a file, or of the files of a folder; nothing for a name of the library's own."""
    files = sorted(path.iterdir()) if os.path.isdir(path) else [path] if os.path.isfile(path) else []
    return [(file.name, file.stat().st_mtime_ns, file.stat().st_size) for file in files]
