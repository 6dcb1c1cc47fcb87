"""The replay of texts whose rounds have a known cost."""

from __future__ import annotations

import argparse
import runpy
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.drafts.length import DraftLength

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"
pytestmark = pytest.mark.skipif(
    not (BENCHMARKS / "draft_lengths.py").is_file(), reason="the repository's benchmarks are not here"
)


@pytest.fixture
def replay(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return runpy.run_path(str(BENCHMARKS / "draft_lengths.py"))


def cost(drafts: int) -> float:
    return 1.2 + 0.05 * drafts if drafts else 1.0


def test_rounds_add_up_to_the_text(replay: dict[str, Any]) -> None:
    """A text that is its prompt again: of each three drafts all are right, but for the end and the first match."""
    text = replay["Text"](list(range(10, 40)), list(range(10, 35)), [])
    of_a_token, a_round = replay["replayed"]([text], lambda lookup, _: DraftLength(3, lookup), cost, 0)
    # The first new token is given; the second begins the match, which a token has always followed: 6 rounds of 4.
    assert (of_a_token, a_round) == (pytest.approx(6 * cost(3) / 24), 4)


def test_auto_reads_long_copies_and_leaves_chance_matches(replay: dict[str, Any]) -> None:
    def of(copied: int, method: Any) -> float:
        texts = [replay["made"](copied, seed, 48) for seed in range(8)]
        return float(replay["replayed"](texts, method, cost, 0)[0])

    def auto(lookup: Any, experience: Any) -> Any:
        return DraftLength(None, lookup, experience=experience)

    def four(lookup: Any, experience: Any) -> Any:
        return DraftLength(4, lookup)

    assert of(30, auto) < of(30, four) < 0.5
    assert of(0, auto) < 1.06 < of(0, four)


def test_costs_between_those_that_were_measured(replay: dict[str, Any], tmp_path: Path) -> None:
    costs, here = tmp_path / "costs.csv", replay["environment"]("cpu")["device"]
    columns = "setting,batch,drafts,cost,threads,device\n"
    rows = [f"a,1,{drafts},{cost},{torch.get_num_threads()},{here}\n" for drafts, cost in ((0, 0.5), (4, 0.6), (16, 1))]
    costs.write_text(columns + "".join(rows))
    options = argparse.Namespace(costs=costs, device="cpu")
    measured = replay["measured_costs"]("a", options)
    assert [measured(drafts) for drafts in (0, 2, 4, 10, 16)] == pytest.approx([1.0, 1.1, 1.2, 1.6, 2.0])
    with pytest.raises(SystemExit, match=r"costs.csv has no costs of 'b' on .* \(draft_costs.py measures them\)"):
        replay["measured_costs"]("b", options)
