"""The session behind the page: texts as commands write them, branches, limits, failures, and what is said below one."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from playground_texts import NEW, PROMPT, SPECS, Held, failure, finished, needs_the_expert, request, written

from decoding.errors import DecodingError, InputError, ModelError, OptionError
from decoding.play import writing
from decoding.play.playground import Playground
from decoding.play.rendering import texts_html
from decoding.play.requests import Limits, Progress, Written
from decoding.strategies.registry import parse_strategy
from decoding.text import continuations

pytestmark = needs_the_expert


# --- texts -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def text_of(playground: Playground) -> Callable[[str], Written]:
    """The text of a strategy, written once for the tests that look at it."""

    @functools.cache
    def text_of(spec: str) -> Written:
        (text,) = written(playground, request(spec))
        return text

    return text_of


@pytest.mark.parametrize("spec", [*SPECS, "beam"])
def test_a_text_is_that_of_the_command_line(
    spec: str, text_of: Callable[[str], Written], expert: tuple[Any, Any]
) -> None:
    text = text_of(spec)
    (expected,) = continuations(*expert, parse_strategy(spec), PROMPT, max_new_tokens=NEW, seed=text.request.seed)
    assert text.text == expected.continuation
    assert text.tokens == expected.token_ids
    assert text.new_tokens == expected.new_tokens
    assert (text.explanation is None) == (spec == "beam")
    if text.explanation is not None:
        assert text.explanation.tokens == text.tokens
        assert text.explanation.steps[0].position == text.start
        assert text.tokens_per_second is not None
        assert text.tokens_per_second > 0


def test_two_strategies_are_written_one_after_the_other_and_stream(playground: Playground) -> None:
    job = playground.start("test", [request(max_new_tokens=24), request("contrastive-search", max_new_tokens=24)])
    states = list(job.states())
    final = states[-1]
    assert [state.label for state in final] == ["greedy", "contrastive-search(penalty_alpha=0.6, top_k=4)"]
    for index in range(2):
        texts = [state[index].text for state in states if state[index].text]
        assert len(set(texts)) > 2
        assert all(final[index].text.startswith(text) for text in texts)
    assert not any(state[1].text for state in states if state[0].written is None)
    assert final[0].note.startswith("24 tokens · ")
    assert final[0].note.endswith(" tokens a second")


def test_a_chat_uses_the_template(playground: Playground, expert: tuple[Any, Any]) -> None:
    model, tokenizer = expert
    if not tokenizer.chat_template:
        message = "chat: expert has no chat template; leave Chat unticked"
        assert failure(playground, request(chat=True)) == message
    else:
        (text,) = written(playground, request(chat=True))
        (expected,) = continuations(model, tokenizer, parse_strategy("greedy"), PROMPT, max_new_tokens=NEW, chat=True)
        assert text.text == expected.continuation


# --- branches --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("spec", SPECS)
def test_a_branch_to_the_chosen_token_goes_on_as_before(
    spec: str, text_of: Callable[[str], Written], playground: Playground
) -> None:
    """The history of contrastive search, the readers and the random draws are those of the first text."""
    text = text_of(spec)
    position = text.start + 4
    (again,) = written(playground, text.branch(position, text.tokens[position]))
    assert again.tokens == text.tokens
    assert again.explanation == text.explanation


@pytest.mark.parametrize("spec", SPECS[1:4])  # draws, a search, a contrast
def test_a_branch_to_any_candidate_goes_on_from_it(
    spec: str, text_of: Callable[[str], Written], playground: Playground
) -> None:
    text = text_of(spec)
    assert text.explanation is not None
    step = text.explanation.steps[2]
    candidates = sorted(step.rejected, key=lambda candidate: (candidate.score is not None, candidate.probability))
    for candidate in (candidates[0], candidates[-1]):  # one that may not be chosen, and the runner-up
        (branch,) = written(playground, text.branch(step.position, candidate.token))
        kept = (*text.tokens[: step.position], candidate.token)
        assert branch.tokens[: len(kept)] == kept
        if branch.tokens[-1] not in (0, 1, 2):
            assert branch.new_tokens == NEW
        assert branch.explanation is not None
        assert branch.explanation.steps[2].chosen.token == candidate.token
        (twice,) = written(playground, branch.branch(step.position, text.tokens[step.position]))
        assert twice.tokens[: len(text.tokens)] == text.tokens


def test_a_branch_needs_an_explained_token(playground: Playground) -> None:
    (beam,) = written(playground, request("beam"))
    with pytest.raises(InputError, match="no explained token"):
        beam.branch(beam.start, 5)
    (greedy,) = written(playground, request())
    for position in (greedy.start - 1, len(greedy.tokens)):
        with pytest.raises(InputError, match=f"position {position}: there is no explained token"):
            greedy.branch(position, 5)


# --- limits and failures ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"prompt": "word " * 20_000}, "the prompt has 100,000 characters: must be at most 20,000 on this page"),
        ({"prompt": " \n"}, "the prompt is empty: give at least one word"),
        ({"max_new_tokens": 513}, "new tokens: 513; must be 1 to 512 on this page"),
        ({"seed": -1}, f"seed: -1; must be a whole number from 0 to {2**53}"),
        ({"seed": 10**30}, f"seed: {10**30}; must be a whole number from 0 to {2**53}"),
    ],
)
def test_what_is_over_a_limit_is_refused_at_once(changes: dict[str, Any], message: str, playground: Playground) -> None:
    with pytest.raises(DecodingError) as refused:
        playground.start("test", [request(**changes)])
    assert str(refused.value) == message
    assert len(written(playground, request())) == 1


def test_a_prompt_beyond_the_context_is_one_line(playground: Playground) -> None:
    assert "context" in failure(playground, request(prompt="word " * 3_000))
    assert len(written(playground, request())) == 1


def test_a_folder_that_is_no_model_is_one_line_and_the_page_goes_on(playground: Playground, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    for name in (str(tmp_path), str(tmp_path / "absent"), str(tmp_path / "notes.txt")):
        assert name in failure(playground, replace(request(), model=name))
    assert len(written(playground, request())) == 1


def test_parameters_that_do_not_fit_the_model_are_one_line(playground: Playground) -> None:
    assert "layers" in failure(playground, request("dola:layers=99"))
    first, second = finished(playground.start("test", [request("dola:layers=99"), request()]))
    assert first.failed
    assert second.written is not None  # the other side is written


def test_memory_that_runs_out_is_one_line(expert: tuple[Any, Any]) -> None:
    def fail(*_: Any) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB.\nGPU 0 has ...")

    model, tokenizer = expert
    playground = Playground(loader=lambda name: (model, tokenizer))
    hook = model.register_forward_pre_hook(fail)
    try:
        for spec in ("greedy", "contrastive-search"):
            assert failure(playground, request(spec)).startswith("expert ran out of memory: ask for fewer new tokens")
    finally:
        hook.remove()
    assert len(written(playground, request())) == 1


def test_only_two_models_stay_loaded(expert: tuple[Any, Any]) -> None:
    loaded: list[str] = []

    def load(name: str) -> tuple[Any, Any]:
        loaded.append(name)
        return expert

    playground = Playground(("a",), loader=load)
    playground.load_first()
    for name in ("a", "b", "a", "c", "a", "b"):
        written(playground, replace(request(max_new_tokens=1), model=name))
    assert loaded == ["a", "b", "c", "b"]


def test_a_first_model_that_cannot_be_loaded_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=f"^{tmp_path}: "):
        Playground((str(tmp_path),)).load_first()


def test_visitors_from_elsewhere_name_no_model_of_their_own() -> None:
    playground = Playground(("expert", "amateur"), Limits(only_named_models=True))
    for wanted, message in (
        (replace(request(), model="/etc"), "model='/etc': must be one of this page's models: expert, amateur"),
        (request("contrastive-decoding:amateur=/etc"), "amateur='/etc': must be one of this page's models"),
        (request("weighted-contrast:terms=1.5*expert - 0.5*/etc"), "'/etc': must be one of this page's models"),
    ):
        with pytest.raises(OptionError) as refused:
            playground.start("test", [wanted])
        assert message in str(refused.value)
    for spec in ("contrastive-decoding:amateur=amateur", "weighted-contrast:terms=1.5*expert - 0.5*self:skip_layers=1"):
        assert len(written(playground, request(spec))) == 1


# --- figures and notes -----------------------------------------------------------------------------------------------


def test_a_rate_leaves_the_first_tokens_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each of the first eight takes a second, and each later one a quarter."""
    clock = [0.0]
    monkeypatch.setattr(writing.time, "perf_counter", lambda: clock[0])
    stream = writing._Stream(None, 0, lambda text, note: None)
    monkeypatch.setattr(stream, "_decoded", lambda tokens: "")
    stream.put(torch.tensor([[1, 2]]))
    for token in range(3):
        stream.put(torch.tensor([token]))
        clock[0] += 1.0
    assert stream.tokens_per_second == 1.0  # of a text that is short
    for token in range(3, 40):
        stream.put(torch.tensor([token]))
        clock[0] += 1.0 if token < 8 else 0.25
    assert stream.tokens_per_second == 4.0


def test_a_model_is_warmed_up_unless_a_text_is_being_written(held: Held) -> None:
    playground = Playground(loader=held.load)
    held.released.set()
    playground.warm_up(["greedy", "contrastive-search"])
    assert 8 <= held.passes <= 40
    before = held.passes
    with playground._turns.place():
        playground.warm_up(["greedy"])
    assert held.passes == before
    playground.warm_up(["dola:layers=99"])  # a text tells what is wrong with it


def test_notes_below_a_text_tell_of_raw_layers_and_a_chat_is_folded(playground: Playground) -> None:
    (text,) = written(playground, request("dola:layers=2,3"))
    states = [Progress(text.request, text.text, "note", written=text)]
    assert "final_norm=true" in texts_html(states)
    assert '"folds"' not in texts_html(states)
    chat = replace(text, request=replace(text.request, chat=True), stopped=True)
    html = texts_html([Progress(chat.request, chat.text, "note", written=chat)])
    assert '"folds":true' in html
    assert '"note":"stopped \u00b7 At ' in html
    (normed,) = written(playground, request("dola:layers=2,3,final_norm=true"))
    assert "final_norm=true reads" not in texts_html([Progress(normed.request, "", "note", written=normed)])
