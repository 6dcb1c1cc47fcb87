"""One process of a model that torchrun's processes share: what it says goes to a file a rank in the folder given."""

import contextlib
import functools
import json
import os
from pathlib import Path
from typing import Any

import torch
from forked_process import after_fork

import decoding
from decoding import ContextAware, ContrastiveDecoding, ContrastiveSearch, DoLa, Scorer
from decoding.evals.cli import main
from decoding.evals.engine.configurations import described
from decoding.evals.isotropy import texts
from decoding.models import loading
from decoding.models.loading import load

STRATEGIES = {
    "contrastive search": ContrastiveSearch(0.6, 4),
    "DoLa behind the norm": DoLa(layers=(1, 2), final_norm=True),
    "context-aware": ContextAware([31, 32, 33]),
    "contrastive decoding": ContrastiveDecoding("amateur"),
    "LOL, an adapter and guidance": decoding.LOL("induced", (0.5, 0.75), guidance=[31, 32]),
}
PROMPTS = {
    "input_ids": torch.tensor([[3, 3, 11, 12, 13, 14, 15], [21, 22, 23, 24, 25, 26, 27]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]),
}
GENERATE = ["generate", "--prompt", "The old clockmaker", "--max-new-tokens", "2"]
EVALUATE = ["eval", "truthfulqa", "--miniature", "--limit", "2", "--strategy", "greedy", "--strategy", "dola:layers=2"]
OTHERS = {
    "doctor": ["--json"],
    "isotropy": ["--max-texts", "2", "--layers", "-1", "--json"],
}


def said(model: Any) -> dict[str, Any]:
    """Tokens, beams and scores of a model under every strategy."""
    found: dict[str, Any] = {"model": described(model, "expert")}
    for name, strategy in STRATEGIES.items():
        found[name] = decoding.generate(model, **PROMPTS, strategy=strategy, max_new_tokens=2).tolist()
    found["from seeds"] = decoding.generate(
        model, **PROMPTS, do_sample=True, seeds=[4, 5], temperature=1.5, max_new_tokens=3
    ).tolist()
    processor = STRATEGIES["DoLa behind the norm"].logits_processor(model, **PROMPTS)
    found["beams"] = model.generate(**PROMPTS, num_beams=2, max_new_tokens=3, logits_processor=[processor]).tolist()
    scoring = [None, *(strategy for strategy in STRATEGIES.values() if not isinstance(strategy, ContrastiveSearch))]
    with Scorer(model, [11, 12], scoring) as scorer:
        (by_strategy,) = scorer.score([([13], [[21, 22], [21, 23, 24]])])
    found["scores"] = [score.normalized.tolist() for scores in by_strategy for score in scores]
    return found


def load_once() -> None:
    """Give commands the model that was loaded before: to load it and to look at it takes longer than what they do."""
    load, known = loading._built_in, dict[str, Any]()

    def loaded(*given: Any) -> Any:
        key = repr(given)
        if key not in known:
            known[key] = load(*given)
        return known[key]

    loading._built_in = loaded


def work(folder: Path) -> None:
    """Say it, draw with a seed of this rank's own, and run the commands."""
    rank = os.environ["RANK"]
    texts.BUILT_IN_DATA["stories"] = functools.partial(texts.stories, 2)  # no more are read, and to tell 300 takes long
    after_fork()
    load_once()
    model, _ = load("expert", dtype="float32", tp_plan="auto")
    found = said(model)
    torch.manual_seed(int(rank))
    drawn = decoding.generate(
        model, **PROMPTS, strategy=STRATEGIES["contrastive search"], do_sample=True, max_new_tokens=3
    )
    found["drawn"] = drawn.tolist()
    others = ((name, [name, *arguments]) for name, arguments in OTHERS.items())
    commands = (("generate", GENERATE), ("evaluate", [*EVALUATE, "--output", str(folder / "shared")]), *others)
    for name, arguments in commands:
        with (folder / f"{name}{rank}.txt").open("w") as file, contextlib.redirect_stdout(file):
            found[name] = main([*arguments, "--tp-plan", "auto", "--dtype", "float32"])
    (folder / f"said{rank}.json").write_text(json.dumps(found))
