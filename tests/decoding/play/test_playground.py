"""The session behind the page: texts as commands write them, branches, stops, the line, limits and failures."""

from __future__ import annotations

import contextlib
import functools
import io
import json
import shlex
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from decoding.errors import DecodingError, InputError, ModelError, OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.explanation.explain import explain
from decoding.play import writing
from decoding.play.code import as_command, as_python
from decoding.play.playground import Job, Playground
from decoding.play.rendering import texts_html
from decoding.play.requests import Limits, Progress, TextRequest, Written
from decoding.play.turns import Turns
from decoding.strategies.registry import parse_strategy
from decoding.text import continuations

PROMPT, NEW = "The old clockmaker", 7
SPECS = (
    "greedy", "nucleus:top_p=0.8", "contrastive-search:top_k=6", "contrastive-decoding:amateur=amateur,beta=1.0",
    "dola:layers=2,3,alpha=0.3", "fsd", "top-n-sigma", "context-aware:context=It was late, and dark.",
)  # fmt: skip

pytestmark = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded models have not been trained here"
)


@pytest.fixture(scope="module")
def playground() -> Playground:
    return Playground()


@pytest.fixture(scope="module")
def expert() -> tuple[Any, Any]:
    return miniature.load("expert")


def request(spec: str = "greedy", **changes: Any) -> TextRequest:
    return TextRequest("expert", parse_strategy(spec), **{"prompt": PROMPT, "max_new_tokens": NEW, **changes})


def finished(job: Job) -> tuple[Progress, ...]:
    return list(job.states())[-1]


def written(playground: Playground, *requests: TextRequest) -> list[Written]:
    states = finished(playground.start("test", requests))
    assert [state.note for state in states if state.failed] == []
    return [state.written for state in states if state.written is not None]


def failure(playground: Playground, wanted: TextRequest) -> str:
    (state,) = finished(playground.start("test", [wanted]))
    assert state.failed
    assert "\n" not in state.note
    return state.note


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


# --- stops, and the line ---------------------------------------------------------------------------------------------


class Held:
    """A loader whose model waits before a forward pass until it is released; and a count of its passes."""

    def __init__(self, model: Any, tokenizer: Any, passes: int) -> None:
        self.passes = 0
        self.reached = threading.Event()
        self.released = threading.Event()
        self._model, self._tokenizer, self._free = model, tokenizer, passes
        self._hook = model.register_forward_pre_hook(self._before)

    def _before(self, *_: Any) -> None:
        self.passes += 1
        if self.passes > self._free:
            self.reached.set()
            assert self.released.wait(60)

    def load(self, name: str) -> tuple[Any, Any]:
        """Return the model whatever its name."""
        return self._model, self._tokenizer

    def close(self) -> None:
        """Let the model be as it was."""
        self.released.set()
        self._hook.remove()


@pytest.fixture
def held(expert: tuple[Any, Any]) -> Iterator[Held]:
    holding = Held(*expert, passes=6)
    yield holding
    holding.close()


def test_a_stop_keeps_what_is_written(held: Held) -> None:
    playground = Playground(loader=held.load)
    job = playground.start("visitor", [request(max_new_tokens=200), request("dola", max_new_tokens=200)])
    assert held.reached.wait(60)
    playground.stop("visitor")
    held.released.set()
    first, second = finished(job)
    assert first.written is not None
    assert 5 <= first.written.new_tokens <= 8
    assert first.written.explanation is not None  # it can still be looked into
    assert first.note.endswith("stopped")
    assert (second.note, second.written) == ("stopped", None)


def test_a_page_that_is_closed_ends_its_text_and_the_next_goes_on(held: Held) -> None:
    playground = Playground(loader=held.load)
    states = playground.start("gone", [request(max_new_tokens=200)]).states()
    next(states)
    assert held.reached.wait(60)
    waiting = playground.start("other", [request(max_new_tokens=3)])
    for (state,) in waiting.states():
        if state.note == "waiting: the model is busy, 1 before this":
            break
    else:
        pytest.fail("nobody was told to wait")
    again = playground.start("another", [request(max_new_tokens=3)])
    states.close()  # as a generator is whose reader is gone
    held.released.set()
    (state,) = finished(again)
    assert state.written is not None
    assert state.written.new_tokens == 3
    assert held.passes < 40  # not the 200 of the first text


def test_a_page_that_is_closed_ends_the_explanation_of_its_text(
    expert: tuple[Any, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Contrastive search is read again one token a pass; the page is closed as that begins."""
    passes: list[int] = []

    def closed(*given: Any, **options: Any) -> Any:
        passes.clear()
        job.leave()
        return explain(*given, **options)

    monkeypatch.setattr(writing, "explain", closed)
    hook = expert[0].base_model.register_forward_pre_hook(lambda *_: passes.append(1))
    try:
        job = Playground(loader=lambda name: expert).start("gone", [request("contrastive-search")])
        (state,) = finished(job)
    finally:
        hook.remove()
    assert state.written is not None
    assert state.written.new_tokens == NEW
    assert state.written.explanation is None
    assert 1 <= len(passes) <= 2  # of the 8 of the explanation


def test_a_text_that_was_stopped_says_so_below_it(playground: Playground) -> None:
    (text,) = written(playground, request(max_new_tokens=3))
    stopped = replace(text, stopped=True)
    states = [Progress(found.request, found.text, "note", written=found) for found in (text, stopped)]
    html = texts_html(states)
    assert html.count('"note":"stopped"') == 1


def test_a_page_does_not_wait_for_its_first_model(expert: tuple[Any, Any]) -> None:
    """A text that is asked for while the model is loaded waits for it, and loads it no second time."""
    loads, loading, loaded = [], threading.Event(), threading.Event()

    def load(name: str) -> tuple[Any, Any]:
        loads.append(name)
        loading.set()
        assert loaded.wait(60)
        return expert

    playground = Playground(loader=load)
    first = threading.Thread(target=playground.load_first)
    first.start()
    assert loading.wait(60)
    states = playground.start("test", [request(max_new_tokens=1)]).states()
    assert any(state.note == "loading expert" for (state,) in states)
    loaded.set()
    assert list(states)[-1][0].written is not None
    first.join()
    assert loads == ["expert"]


def test_a_page_that_does_not_even_say_that_it_is_gone_holds_nobody_up(playground: Playground) -> None:
    abandoned = playground.start("silent", [request(max_new_tokens=30)]).states()
    next(abandoned)
    assert len(written(playground, request())) == 1


def test_a_new_text_of_a_visitor_ends_the_one_before(held: Held) -> None:
    playground = Playground(loader=held.load)
    first = playground.start("visitor", [request(max_new_tokens=200)])
    assert held.reached.wait(60)
    second = playground.start("visitor", [request(max_new_tokens=2)])
    held.released.set()
    (state,) = finished(second)
    assert state.written is not None
    (before,) = finished(first)
    assert before.written is not None
    assert before.written.new_tokens < 10


def test_a_line_that_is_full_says_so(held: Held) -> None:
    playground = Playground(limits=Limits(waiting=1), loader=held.load)
    first = playground.start("a", [request(max_new_tokens=20)])
    assert held.reached.wait(60)
    second = playground.start("b", [request(max_new_tokens=2)])
    states = second.states()
    assert any("1 before this" in state.note for (state,) in states)
    (third,) = finished(playground.start("c", [request()]))
    assert third.note == "the model is busy, and 1 text waits for it: try again in a moment"
    held.released.set()
    assert list(states)[-1][0].written is not None
    assert finished(first)[0].written is not None


def test_turns_come_in_order() -> None:
    turns = Turns(5)
    with turns.place() as first, turns.place() as second, turns.place() as third:
        assert [first(0), second(0), third(0)] == [0, 1, 2]
    with turns.place() as alone:
        assert alone(0) == 0


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


# --- code ------------------------------------------------------------------------------------------------------------


def printed(program: str) -> str:
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        exec(compile(program, "<page>", "exec"), {})
    return out.getvalue().removesuffix("\n")


# A strategy of the package with readers by name and in numbers, one that is imported from its module, one with a text,
# and each kind of baseline.
@pytest.mark.parametrize("spec", [*SPECS[1:6], SPECS[-1], "beam:num_beams=2"])
def test_the_python_of_a_text_prints_it(spec: str, playground: Playground) -> None:
    (text,) = written(playground, request(spec, seed=5, prompt='A "quoted"\nline'))
    assert printed(as_python(text.request)) == 'A "quoted"\nline' + text.text


def test_the_python_of_a_branch_prints_it(playground: Playground) -> None:
    (text,) = written(playground, request())
    assert text.explanation is not None
    step = text.explanation.steps[3]
    (branch,) = written(playground, text.branch(step.position, step.rejected[0].token))
    assert printed(as_python(branch.request)) == PROMPT + branch.text
    command = shlex.split(as_command([branch]))
    assert command[command.index("--prompt") + 1] == PROMPT + "".join(branch.explanation.texts[branch.start :][:4])  # type: ignore[union-attr,index]
    assert command[command.index("--max-new-tokens") + 1] == str(NEW - 4)


def test_the_command_line_of_texts_prints_them(playground: Playground, capsys: pytest.CaptureFixture[str]) -> None:
    specs = ("contrastive-decoding:amateur=amateur,beta=1.0", "nucleus:top_p=0.8")
    texts = written(playground, *(request(spec, seed=7, prompt="It's $HOME\nagain") for spec in specs))
    words = shlex.split(as_command(texts))
    assert words[:2] == ["decoding", "compare"]
    assert main([*words[1:], "--json"]) == 0
    compared = json.loads(capsys.readouterr().out)["strategies"]
    assert [found["continuations"][0]["continuation"] for found in compared] == [text.text for text in texts]
    # A text with a comma and an equals sign cannot stand within --strategy.
    (text,) = written(playground, _with_context("late, x=1"))
    words = shlex.split(as_command([text]))
    assert words[:2] == ["decoding", "generate"]
    assert main([*words[1:], "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["continuation"] == text.text


def _with_context(context: str) -> TextRequest:
    spec = parse_strategy("context-aware", {"context": context})
    return TextRequest("expert", spec, PROMPT, max_new_tokens=NEW)


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
