"""A model split over devices, or offloaded, says what it says on one."""

import pytest

pytest.importorskip("accelerate", reason="splitting a model over devices needs accelerate")

import contextlib
import functools
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from pretended_device import ELSEWHERE, Elsewhere, pretended_device, spread, without_it
from streams import stream_with_way
from tiny_models import tiny_model
from torch import nn

import decoding
from decoding import ContextAware, ContrastiveDecoding, ContrastiveSearch, DoLa, Scorer
from decoding.errors import ModelError, OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import described
from decoding.evals.isotropy.states import read_states
from decoding.induce import Example, induce
from decoding.models.devices import device_names, input_device
from decoding.scoring.teacher_forcing import teacher_forced

PADDED = {
    "input_ids": torch.tensor([[0, 0, 11, 12, 13, 14, 15], [21, 22, 23, 24, 25, 26, 27]]),
    "attention_mask": torch.tensor([[0, 0, 1, 1, 1, 1, 1], [1, 1, 1, 1, 1, 1, 1]]),
}
PROBE_WINDOW = ("model.layers.1", "model.layers.2", "model.norm", "lm_head")
SPLITS = {
    "head elsewhere": ("llama", PROBE_WINDOW),
    "head here, upper layers elsewhere": ("llama", PROBE_WINDOW[:-1]),
    "a layer in between elsewhere": ("llama", ("model.layers.1",)),
    "sliding windows": ("mistral-sliding", PROBE_WINDOW),
    "soft-capped logits and masks of two kinds": ("gemma2", PROBE_WINDOW),
}
NEW = 3  # tokens: the prompt's, one of a branch that is kept, and one of a step after it
STRATEGIES = {
    "contrastive search": lambda: ContrastiveSearch(0.6, 4),
    "DoLa": lambda: DoLa(layers=(0, 1, 2)),
    "DoLa behind the norm": lambda: DoLa(layers=(1, 2), final_norm=True),
    "context-aware": lambda: ContextAware([31, 32, 33]),
    "contrastive decoding": lambda: ContrastiveDecoding(amateur()),
    "an amateur's prompt": lambda: ContrastiveDecoding(decoding.Prompt([41, 42])),
}


# Every strategy where the head is elsewhere. Elsewhere those that do what the others do not: one that branches (masks
# and the cache move), one that reads layers through norm and head, and one with a second model, whose logits are here.
# Layers in between are those of the prompts in pieces.
PLACED = [
    *(("head elsewhere", strategy) for strategy in STRATEGIES),
    ("head here, upper layers elsewhere", "contrastive search"),
    ("head here, upper layers elsewhere", "DoLa behind the norm"),
    ("sliding windows", "contrastive search"),
    ("soft-capped logits and masks of two kinds", "contrastive search"),
    ("soft-capped logits and masks of two kinds", "DoLa behind the norm"),
    ("soft-capped logits and masks of two kinds", "contrastive decoding"),
]


@functools.cache
def amateur() -> Any:
    return tiny_model("llama", 1)


@pytest.fixture(autouse=True)
def second_device() -> Iterator[None]:
    with pretended_device():
        yield


@functools.cache
def whole_model(name: str) -> Any:
    return tiny_model(name)


@functools.cache
def split(case: str) -> tuple[Any, Any]:
    """A model, and the same over two devices: kept, with what was found out about them."""
    name, there = SPLITS[case]
    return whole_model(name), spread(untied(tiny_model(name)), *there)


def untied(model: Any) -> Any:
    """Gemma's head is its embeddings, which are on one device."""
    model.lm_head.weight = nn.Parameter(model.lm_head.weight.detach().clone())
    return model


@functools.cache
def on_one_device(name: str, strategy: str) -> list[list[int]]:
    """What a model that is on one device writes after the prompts, in NEW tokens."""
    model = whole_model(name)
    with without_it():
        return decoding.generate(model, **PADDED, strategy=STRATEGIES[strategy](), max_new_tokens=NEW).tolist()


def close(one: torch.Tensor, other: torch.Tensor) -> None:
    # The pretended device computes attention step by step where the CPU has one kernel: a few units in the last place.
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)


def test_the_second_device_refuses_what_real_ones_do() -> None:
    here, there = torch.ones(2, 3), Elsewhere(torch.ones(2, 3))
    for mixed in (
        lambda: here + there,
        lambda: torch.cat([there, here]),
        lambda: here[torch.zeros(1, dtype=torch.long, device=ELSEWHERE)],
        lambda: there.gather(1, torch.zeros(2, 1, dtype=torch.long)),
    ):
        with pytest.raises(RuntimeError, match="expected all tensors on one device"):
            mixed()
    assert (there + here.to(ELSEWHERE)).device == ELSEWHERE
    assert there.to("cpu").equal(here)


@pytest.mark.parametrize(("case", "strategy"), PLACED)
def test_tokens_are_those_of_one_device(case: str, strategy: str) -> None:
    tokens = decoding.generate(split(case)[1], **PADDED, strategy=STRATEGIES[strategy](), max_new_tokens=NEW)
    assert tokens.tolist() == on_one_device(SPLITS[case][0], strategy)


@pytest.mark.parametrize("strategy", ["contrastive search", "DoLa", "contrastive decoding"])
def test_prompts_in_pieces_are_those_of_one_device(strategy: str) -> None:
    parts, made = split("a layer in between elsewhere")[1], STRATEGIES[strategy]()
    tokens = decoding.generate(parts, **PADDED, strategy=made, max_new_tokens=NEW, prefill_chunk_size=3)
    assert tokens.tolist() == on_one_device("llama", strategy)


def beams(model: Any, strategy: decoding.Strategy) -> list[list[int]]:
    processor = strategy.logits_processor(model, **PADDED)
    return model.generate(**PADDED, num_beams=2, max_new_tokens=NEW, logits_processor=[processor]).tolist()


def drawn(model: Any, strategy: decoding.Strategy) -> list[list[int]]:
    torch.manual_seed(0)
    return decoding.generate(model, **PADDED, strategy=strategy, do_sample=True, max_new_tokens=NEW).tolist()


# Beams move the rows of a cache, and of every other reader's; a draw is one of the session that all contrasts share, or
# of contrastive search.
@pytest.mark.parametrize(
    ("call", "strategy"),
    [(beams, "contrastive search"), (beams, "context-aware"), (drawn, "contrastive search"), (drawn, "DoLa")],
)
def test_beams_and_draws_are_those_of_one_device(call: Callable[..., list[list[int]]], strategy: str) -> None:
    found = []
    for model, devices in zip(split("head elsewhere"), (without_it(), contextlib.nullcontext()), strict=True):
        with devices:
            found.append(call(model, STRATEGIES[strategy]()))
    assert found[0] == found[1]


def test_forked_branches_are_those_of_one_device() -> None:
    texts = []
    for model in split("head elsewhere"):
        stream = stream_with_way(model, "fork", **PADDED, exits=(1, 2))
        looked_at = stream.branch(torch.tensor([[31, 32], [33, 34]])).hidden
        kept = stream.commit(torch.tensor([1, 0]))
        stream.reorder(torch.tensor([1, 0]))
        after = stream.branch(torch.tensor([[41], [42]])).hidden
        texts.append([states.to("cpu") for states in (looked_at, kept.hidden, *kept.exits, after)])
    for one, other in zip(*texts, strict=True):
        close(one, other)


@pytest.mark.parametrize("case", SPLITS)
def test_scores_are_those_of_one_device(case: str) -> None:
    strategies = [None, *(make() for name, make in STRATEGIES.items() if name != "contrastive search")]
    found = []
    for model in split(case):
        with Scorer(model, [11, 12, 13], strategies) as scorer:
            scored = scorer.score([([21, 22], [[31, 32, 33], [31, 34]]), ([23], [[35, 36]])])
        found.append([score for by_strategy in scored for scores in by_strategy for score in scores])
    for one, other in zip(*found, strict=True):
        close(one.normalized, other.normalized)
        close(one.raw, other.raw)


@pytest.mark.parametrize("strategy", ["DoLa", "DoLa behind the norm", "contrastive decoding", "an amateur's prompt"])
def test_whole_texts_are_scored_as_on_one_device(strategy: str) -> None:
    made = STRATEGIES[strategy]()
    one, other = (teacher_forced(model, PADDED["input_ids"], made) for model in split("head elsewhere"))
    close(one, other.to("cpu"))


def test_lora_amateurs_speak_on_every_device() -> None:
    pytest.importorskip("peft")
    inputs = {"input_ids": torch.tensor([[5, 6, 7, 8]]), "attention_mask": torch.ones(1, 4, dtype=torch.long)}
    texts = []
    for there in ((), ("model.layers.1", "model.layers.3", "model.norm", "lm_head")):
        model = untied(miniature.load("expert")[0])
        model = spread(model, *there) if there else model
        strategy = decoding.LOL("induced", (0.5, 0.75), guidance=[9, 10])
        texts.append(decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=4).tolist())
    assert texts[0] == texts[1]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model")
    tiny_model("llama").save_pretrained(path)
    miniature.load("expert")[1].save_pretrained(path)
    return path


def on_a_disk(folder: Path, embeddings: str, weights: Path) -> Any:
    """The model of a folder with some layers, norm and head on a disk, and its embeddings where it is told."""
    from transformers import AutoModelForCausalLM

    kept = {"model.rotary_emb": "cpu", "model.layers.1": "cpu"}
    away = {"model.layers.0": "disk", "model.layers.2": "disk", "model.norm": "disk", "lm_head": "disk"}
    places = {**kept, **away, "model.embed_tokens": embeddings}
    return AutoModelForCausalLM.from_pretrained(folder, device_map=places, offload_folder=weights).eval()


@pytest.fixture(scope="module")
def offloaded(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """A model with its embeddings on a disk too: no test changes it."""
    return on_a_disk(folder, "disk", tmp_path_factory.mktemp("weights"))


def test_weights_on_a_disk_say_the_same(offloaded: Any) -> None:
    assert input_device(offloaded) == torch.device("cpu")
    with without_it():  # these weights are on a disk, and read to the CPU
        for strategy in ("contrastive search", "DoLa behind the norm", "contrastive decoding", "an amateur's prompt"):
            tokens = decoding.generate(offloaded, **PADDED, strategy=STRATEGIES[strategy](), max_new_tokens=NEW)
            assert tokens.tolist() == on_one_device("llama", strategy)
        assert described(whole_model("llama"), "") == described(offloaded, "")


def test_layers_on_a_disk_say_the_same(folder: Path, tmp_path: Path) -> None:
    layers_alone = on_a_disk(folder, "cpu", tmp_path)
    assert input_device(layers_alone) == torch.device("cpu")
    with without_it():
        for strategy in ("DoLa", "context-aware"):
            tokens = decoding.generate(layers_alone, **PADDED, strategy=STRATEGIES[strategy](), max_new_tokens=NEW)
            assert tokens.tolist() == on_one_device("llama", strategy)
    assert sorted(device_names(layers_alone)) == ["cpu", "offloaded"]


def test_states_are_those_of_one_device(offloaded: Any) -> None:
    texts = [[5, 6, 7, 8, 9], [10, 11, 12]]
    expected = read_states(tiny_model("llama"), texts, (0, 1, 3))
    for parts in (offloaded, split("head elsewhere")[1]):
        for one, other in zip(expected, read_states(parts, texts, (0, 1, 3)), strict=True):
            close(one, other.to("cpu"))


def test_steps_on_weights_elsewhere_are_not_captured(offloaded: Any) -> None:
    strategy = ContrastiveSearch(0.6, 4)
    with pytest.raises(OptionError, match="cannot be captured: its weights lie on several devices"):
        decoding.generate(offloaded, **PADDED, strategy=strategy, max_new_tokens=4, compile=True)


def test_nothing_is_induced_on_weights_that_are_not_there(offloaded: Any, tmp_path: Path) -> None:
    pytest.importorskip("peft")
    examples = [Example("Who?", "Nobody.")]
    with pytest.raises(ModelError, match="weights offloaded to CPU or disk, where no adapter can be trained"):
        induce(offloaded, miniature.load("expert")[1], examples, tmp_path / "adapter")
    assert not (tmp_path / "adapter").exists()


def test_where_weights_are_is_told(offloaded: Any) -> None:
    assert device_names(tiny_model("llama")) == ["cpu"]
    assert device_names(split("a layer in between elsewhere")[1]) == ["cpu", str(ELSEWHERE)]
    assert sorted(device_names(offloaded)) == ["cpu", "offloaded"]


def test_an_adapter_is_not_put_on_weights_that_are_not_there(offloaded: Any) -> None:
    with pytest.raises(ModelError, match="induced: an adapter cannot be loaded onto a model with weights offloaded"):
        decoding.generate(offloaded, **PADDED, strategy=decoding.ContrastiveDecoding("induced"), max_new_tokens=4)


def test_the_command_line_splits_a_model(capsys: pytest.CaptureFixture[str]) -> None:
    command = ["generate", "--prompt", "The old clockmaker", "--max-new-tokens", "3"]
    assert main(command) == main([*command, "--device-map", "auto"]) == 0
    one, other = capsys.readouterr().out.splitlines()
    assert one == other
    evaluate = ["eval", "truthfulqa", "--miniature", "--limit", "1", "--strategy", "dola", "--device-map", "auto"]
    assert main(evaluate) == 0
