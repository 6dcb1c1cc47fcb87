"""The embedded expert, and pages that write with it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from playground_texts import Held

from decoding.evals import miniature
from decoding.play.playground import Playground


@pytest.fixture(scope="module")
def playground() -> Playground:
    return Playground()


@pytest.fixture(scope="module")
def expert() -> tuple[Any, Any]:
    return miniature.load("expert")


@pytest.fixture
def held(expert: tuple[Any, Any]) -> Iterator[Held]:
    holding = Held(*expert, passes=6)
    yield holding
    holding.close()
