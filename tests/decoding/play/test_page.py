"""The page in a browser: it writes, its sliders set, a candidate is gone on from, and failures are one clear line."""

from __future__ import annotations

import re
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from playground_texts import PROMPT, needs_the_expert

from decoding.errors import ModelError
from decoding.play.playground import Playground
from decoding.strategies.registry import parse_strategy
from decoding.text import continuations

pytestmark = needs_the_expert


class Passes:
    """Counts the forward passes of a model."""

    def __init__(self, model: Any) -> None:
        self.count = 0
        model.register_forward_pre_hook(self._add)

    def _add(self, *_: Any) -> None:
        self.count += 1


@pytest.fixture(scope="module")
def passes(expert: tuple[Any, Any]) -> Passes:
    return Passes(expert[0])


@pytest.fixture(scope="module")
def address(expert: tuple[Any, Any]) -> Iterator[str]:
    """A page that is served; its expert is the one of this module."""
    pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")
    from decoding.models.loading import load
    from decoding.play.page import build_page, launch_settings

    playground = Playground(loader=lambda name: expert if name == "expert" else load(name))
    page = build_page(playground)
    _, served_at, _ = page.launch(server_name="127.0.0.1", prevent_thread_lock=True, quiet=True, **launch_settings())
    yield served_at
    page.close(verbose=False)


@pytest.fixture(scope="module")
def browser(address: str) -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture(scope="module")
def told() -> list[str]:
    """Errors that pages told their consoles, and what they fetched from elsewhere."""
    return []


@pytest.fixture(scope="module")
def opened(browser: Any, address: str, told: list[str]) -> Iterator[Any]:
    """Opens the page: it loads for a second."""
    contexts = []

    def open_it(**options: Any) -> Any:
        contexts.append(browser.new_context(**{"viewport": {"width": 1100, "height": 900}, **options}))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on("request", lambda request: None if request.url.startswith(address) else told.append(request.url))
        page.set_default_timeout(60_000)  # a machine may be busy with other tests
        page.goto(address)
        page.get_by_label("top k").first.wait_for()
        return page

    yield open_it
    for context in contexts:
        context.close()


@pytest.fixture(scope="module")
def page(opened: Any) -> Any:
    """The page that the tests of this module go on with, wherever the one before left it."""
    return opened()


@pytest.fixture(autouse=True)
def without_errors(told: list[str]) -> Iterator[None]:
    """What a page told or fetched is an error of the test."""
    told.clear()
    yield
    assert told == []


def write(page: Any) -> None:
    """Click, and wait for both texts."""
    page.evaluate("document.querySelector('.play-texts').replaceChildren()")
    page.get_by_role("button", name="Write").click()
    page.locator("explained-texts[branch]").wait_for()


def text_of(page: Any, side: int) -> str:
    return "".join(page.get_by_role("listbox", name="Tokens of").nth(side).get_by_role("option").all_inner_texts())


def test_it_writes_obeys_a_slider_and_branches(page: Any, expert: tuple[Any, Any]) -> None:
    page.get_by_label("number input for New tokens").fill("12")
    page.get_by_label("number input for New tokens").press("Tab")
    write(page)
    for side, spec in enumerate(("greedy", "contrastive-search")):
        (expected,) = continuations(*expert, parse_strategy(spec), PROMPT, max_new_tokens=12)
        assert text_of(page, side) == expected.continuation
    notes = page.locator(".play-notes li").all_inner_texts()
    assert re.fullmatch(r"greedy\s*12 tokens · [\d.,]+ tokens a second", notes[0])

    slider = page.get_by_label("range slider for penalty alpha")
    slider.focus()
    for _ in range(4):
        page.keyboard.press("ArrowLeft")
    number = page.get_by_label("number input for penalty alpha")
    page.wait_for_function("box => box.value === '0.4'", arg=number.element_handle())
    write(page)
    assert page.locator(".et-card small").inner_text() == "penalty_alpha=0.4, top_k=4"
    (expected,) = continuations(
        *expert, parse_strategy("contrastive-search:penalty_alpha=0.4"), PROMPT, max_new_tokens=12
    )
    assert text_of(page, 1) == expected.continuation

    left = text_of(page, 0)
    tokens = page.get_by_role("listbox", name="Tokens of").nth(1).get_by_role("option")
    before = tokens.all_inner_texts()[:2]
    tokens.nth(2).click()
    candidate = page.locator(".et-bars > section").first.locator("li:not(.et-chosen) button").first
    name = candidate.inner_text().replace("␣", " ")
    candidate.click()
    page.wait_for_function("text => document.querySelectorAll('[role=listbox]')[1]?.textContent.startsWith(text)",
                           arg="".join(before) + name)  # fmt: skip
    assert text_of(page, 0) == left  # the other text stays
    page.get_by_role("button", name="Copy as Python").click()
    program = page.locator(".play-code textarea").nth(1).input_value()
    assert "ContrastiveSearch(penalty_alpha=0.4)" in program
    assert "kept = torch.tensor([[" in program

    page.get_by_label("Strategy, left").click()
    page.get_by_role("option", name="dola", exact=True).click()
    flags = page.locator(".play-flag")
    flags.first.wait_for()
    assert flags.all_inner_texts() == ["final norm", "per row"]
    for width in (360, 1280):  # labels can be read
        page.set_viewport_size({"width": width, "height": 900})
        boxes = [flag.bounding_box() for flag in flags.all()]
        assert all(box["width"] >= 120 and box["height"] < 60 for box in boxes)
        assert all(box["x"] + box["width"] <= width for box in boxes)
    page.get_by_role("textbox", name="layers", exact=True).fill("2,3")
    write(page)
    small = page.locator(".et-card small").all_inner_texts()
    assert small[0].startswith("layers=2,3, alpha=0.1")
    assert small[1] == "penalty_alpha=0.4, top_k=4"  # the other side's controls stay as they were
    shown, whole, lines = page.locator(".play-code textarea").first.evaluate(
        "box => [box.clientHeight, box.scrollHeight, box.value.split('\\n').length]"
    )
    assert 12 * lines <= whole <= shown + 1  # all lines of the program are seen
    command = page.locator(".play-code textarea").nth(2).input_value()
    assert "--strategy dola:layers=2,3 --strategy contrastive-search:penalty_alpha=0.4" in command


def test_failures_are_one_clear_line_and_the_page_goes_on(page: Any, tmp_path: Path) -> None:
    page.get_by_label("number input for New tokens").fill("5")
    page.get_by_label("Prompt").fill("x" * 100_000)
    page.get_by_role("button", name="Write").click()
    failed = page.locator(".play-failed")
    failed.wait_for()
    assert failed.inner_text() == "the prompt has 100,000 characters: must be at most 20,000 on this page"
    strategy = page.get_by_label("Strategy, left")
    strategy.fill("dolla")
    strategy.press("Enter")
    told = page.get_by_text("unknown strategy 'dolla'; did you mean dola or lol? expected one of ").first
    told.wait_for()
    assert strategy.input_value() == "dolla"  # and no other takes its place
    page.get_by_role("button", name="Write").click()
    page.get_by_text("left: unknown strategy 'dolla'").wait_for()
    strategy.fill("greedy")
    strategy.press("Enter")
    page.locator(".play-summary").nth(1).wait_for()
    page.get_by_label("Prompt").fill("<b>Tom</b> {{value}} ${1+1}")
    model = page.get_by_label("Model:")
    model.fill(str(tmp_path))
    model.press("Enter")
    page.get_by_role("button", name="Write").click()
    page.get_by_text(f"{tmp_path}: is no model folder").wait_for()
    assert failed.count() == 1
    assert "\n" not in failed.inner_text()
    model.fill("expert")
    model.press("Enter")
    write(page)
    assert page.locator(".et-given").first.inner_text() == "<b>Tom</b> {{value}} ${1+1}"


def test_the_page_is_served_before_its_model_is_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    """And ends with one line where that cannot be loaded."""
    pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")
    import gradio

    from decoding.play import page

    answers = []
    addresses: list[str] = []
    launch = gradio.Blocks.launch
    monkeypatch.setattr(
        gradio.Blocks,
        "launch",
        lambda *given, **options: addresses.append((made := launch(*given, **options))[1]) or made,
    )

    def load(name: str) -> Any:
        with urllib.request.urlopen(addresses[0]) as answer:
            answers.append(answer.status)
        raise ModelError(f"{name}: cannot be loaded")

    with pytest.raises(ModelError, match="expert: cannot be loaded"):
        page.serve(Playground(loader=load), "127.0.0.1", None)
    assert answers == [200]
    with pytest.raises(urllib.error.URLError):
        urllib.request.urlopen(addresses[0])


def test_a_page_that_is_closed_makes_way_for_another(page: Any, opened: Any, passes: Passes) -> None:
    first, second = page, opened(viewport={"width": 360, "height": 800})
    for page, tokens in ((first, "512"), (second, "4")):
        page.get_by_label("number input for New tokens").fill(tokens)
        page.get_by_label("number input for New tokens").press("Tab")
    assert second.evaluate("document.documentElement.scrollWidth") <= 360
    before = passes.count
    first.get_by_role("button", name="Write").click()
    first.wait_for_function("document.querySelector('.et-text')?.textContent.length > 40")
    second.get_by_role("button", name="Write").click()
    second.get_by_text("waiting: the model is busy, 1 before this").first.wait_for()
    first.close()
    second.locator("explained-texts[branch]").wait_for()
    assert second.locator(".play-notes li").first.inner_text().startswith("greedy")
    assert passes.count - before < 450  # two texts of 512 tokens and their explanations need more than 1,000
