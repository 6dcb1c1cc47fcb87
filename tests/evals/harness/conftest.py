"""Settings of the tests inside lm-evaluation-harness."""

from __future__ import annotations

from collections.abc import Iterator

import pytest


@pytest.fixture(scope="package", autouse=True)
def machine_described_in_no_words() -> Iterator[None]:
    """Let lm-eval put no description of the machine into its results, for which pip and others run for a second."""
    from torch.utils import collect_env

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(collect_env, "get_pretty_env_info", str)
        yield
