"""The explorer: one file that fetches nothing, whatever its texts hold; and what it does in a browser."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from browsers import chromium
from command_results import refused

from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.compare.compare import Comparison
from decoding.explanation.explorer import (
    ExploredTexts,
    UnexplainedText,
    explorer_element,
    explorer_page,
    explorer_script,
    explorer_style,
)
from decoding.explanation.records import Candidate, Explanation, Step
from decoding.strategies.registry import parse_strategy
from decoding.text import Continuation

STRATEGIES = {
    "greedy": "greedy",
    "contrastive-search": "contrastive-search:penalty_alpha=0.4,top_k=4",
    "contrastive-decoding": "contrastive-decoding:amateur=amateur",
    "dola": "dola:layers=2,3,alpha=0.3",
    "lol": "lol:amateur=amateur,lower_layers=0.75,amateur_weight=0.25,lower_amateur_weight=0.5,fusion_weight=0.1",
    "beam": "beam",
}
EVIL = "</script><script>alert(1)</script> & <b>\"x\" 'y'</b> <!--"


def _candidate(token: int, text: str, probability: float, score: float | None, **more: Any) -> Candidate:
    return Candidate(token, text, {"expert": math.log(probability)}, score, probability, **more)


def _step(position: int, chosen: Candidate, greedy: Candidate) -> Step:
    rejected = () if chosen is greedy else (greedy,)
    return Step(position, chosen, rejected, greedy.token, 1 + len(rejected), {"expert": 1.0})


def _explanation(texts: tuple[str, ...], given: int) -> Explanation:
    """A text whose first tokens are the prompt; in place of every second new one greedy search would have "other"."""
    steps = []
    for position in range(given, len(texts)):
        chosen = _candidate(position, texts[position], 0.3, 1.0, repeats=0)
        other = _candidate(99, "other", 0.6, 0.5)
        steps.append(_step(position, chosen, other if position % 2 else chosen))
    tokens = tuple(range(len(texts)))
    return Explanation("a <strategy>(x=1)", ("expert",), tokens, texts, (False,) * len(texts), tuple(steps))


# --- the file --------------------------------------------------------------------------------------------------------


class Outline(HTMLParser):
    """The tags of a page, what it fetches, and what stands in its scripts."""

    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.fetched: list[str] = []
        self.scripts: list[str] = []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attributes:
            if name in ("src", "href", "srcset", "action") and not (value or "").startswith("data:"):
                self.fetched.append(value or "")

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1] == "script":
            self.scripts.append(data)

    def handle_endtag(self, tag: str) -> None:
        self.tags.append(f"/{tag}")


def test_a_page_stands_alone_and_texts_are_data() -> None:
    texts = [_explanation((EVIL, EVIL, "\u2028\\"), 1), UnexplainedText(EVIL, EVIL)]
    page = explorer_page(EVIL, [ExploredTexts(EVIL, texts)], EVIL)
    outline = Outline()
    outline.feed(page)
    assert outline.fetched == []
    assert outline.tags.count("script") == 2
    assert "b" not in outline.tags
    assert not re.search(r"https?:|url\(|@import|\beval\(|innerHTML|outerHTML|insertAdjacentHTML", page)
    data, script = outline.scripts
    assert script == explorer_script()
    (group,) = json.loads(data)["groups"]
    assert group["title"] == EVIL
    assert group["texts"][0]["tokens"] == [EVIL, EVIL, "\u2028\\"]
    assert group["texts"][1] == {"strategy": EVIL, "plain_text": EVIL}


def test_script_and_style_are_small() -> None:
    assert len(explorer_script().encode()) <= 40_000
    assert len(explorer_style().encode()) <= 12_000


def test_a_text_without_a_tokenizer_shows_its_tokens() -> None:
    explained = _explanation(("a", "b"), 1)
    step = explained.steps[0]
    bare = dataclasses.replace(
        explained, texts=None, steps=(dataclasses.replace(step, chosen=dataclasses.replace(step.chosen, text=None)),)
    )
    assert '"tokens":["#0 ","#1 "]' in explorer_element([ExploredTexts("", [bare])])


def test_bad_files_are_one_line_and_exit_code_2(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "file").touch()
    for given, message in (
        (tmp_path, f"--html {tmp_path}: is a folder; must be the name of a file"),
        (tmp_path / "file" / "page.html", "cannot be written"),
        ("", "--html '': the name is empty; expected FILE"),
    ):
        assert message in refused(main(["compare", "--prompt", "Tom", "--html", str(given)]), *capfd.readouterr())


# --- in a browser ----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with chromium() as running:
        yield running


@pytest.fixture
def opened(browser: Any) -> Iterator[Any]:
    """Opens a file in a page of a size; whatever the page tells its console is an error of the test."""
    told: list[str] = []
    contexts = []

    def open_it(file: Path, width: int = 1100, hash_: str = "", **options: Any) -> Any:
        contexts.append(browser.new_context(viewport={"width": width, "height": 800}, **options))
        page = contexts[-1].new_page()
        page.on("console", lambda message: told.append(message.text))
        page.on("pageerror", lambda error: told.append(str(error)))
        page.on(
            "request",
            lambda request: told.append(request.url) if not request.url.startswith(("file:", "about:")) else None,
        )
        page.goto(file.as_uri() + hash_)
        return page

    yield open_it
    for context in contexts:
        context.close()
    assert told == []


@pytest.fixture(scope="module")
def compared(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Explanation]]:
    """The page of a comparison, and its explanations by strategy."""
    if not (miniature.folder("expert") / "config.json").is_file():
        pytest.skip("the embedded models have not been trained here")
    folder = tmp_path_factory.mktemp("compared") / "made" / "with it"  # as those of --output are
    strategies = [part for spec in STRATEGIES.values() for part in ("--strategy", spec)]
    arguments = ["compare", "--prompt", "The old clockmaker", "--max-new-tokens", "16", *strategies]
    assert main([*arguments, "--explain", "--output", str(folder), "--html", str(folder / "page.html")]) == 0
    found = json.loads((folder / "compare.json").read_text(encoding="utf-8"))["strategies"]
    explained = {
        strategy["strategy"]: Explanation.from_dict(strategy["continuations"][0]["explanation"])
        for strategy in found
        if strategy["strategy"] != "beam"
    }
    return folder / "page.html", explained


def _state(page: Any) -> dict[str, str]:
    return dict(page.evaluate("Object.fromEntries(new URLSearchParams(location.hash.slice(1)))"))


def _percent(p: float) -> str:
    return f"{100 * p:.0f}%" if p >= 0.1 else f"{100 * p:.1f}%" if p >= 0.001 else "<0.1%"


def _shown(text: str | None) -> str:
    return re.sub("^ | $", "␣", text or "").replace("\n", "⏎")


def _bars(page: Any, which: int) -> dict[str, str]:
    rows = page.locator(".et-bars > section").nth(which).locator("li")
    return {row.locator(".et-name").inner_text(): row.locator(".et-value").inner_text() for row in rows.all()}


def test_every_strategy_of_a_comparison_can_be_looked_into(
    compared: tuple[Path, dict[str, Explanation]], opened: Any
) -> None:
    file, explained = compared
    page = opened(file)
    for name, explanation in explained.items():
        _look_into(page, name, explanation)


def _look_into(page: Any, name: str, explanation: Explanation) -> None:
    """Point at a token of a strategy's text, and compare what is shown with the explanation."""
    index = list(STRATEGIES).index(name)
    text = page.get_by_role("listbox").nth(index)
    tokens = text.get_by_role("option")
    assert explanation.texts is not None
    assert tokens.all_inner_texts() == list(explanation.texts[explanation.steps[0].position :])
    left = [step for step in explanation.steps if step.differs_from_greedy]
    assert text.locator(".et-left").count() == len(left)
    assert (len(left) > 0) == (name != "greedy")
    step = left[0] if left else explanation.steps[3]
    number = explanation.steps.index(step)

    tokens.nth(number).hover()
    assert page.locator(".et-panel h4").inner_text().startswith(_shown(step.chosen.text))
    assert _state(page) == {}  # what the mouse passes is not kept
    before, after = _bars(page, 0), _bars(page, 1)
    most_probable = sorted(step.rejected, key=lambda candidate: -candidate.probability_of("expert"))[:3]
    for candidate in (step.chosen, step.greedy, *most_probable):
        assert before[_shown(candidate.text)] == _percent(candidate.probability_of("expert"))
    assert after[_shown(step.chosen.text)] == _percent(step.chosen.probability)
    for candidate in step.rejected:
        if _shown(candidate.text) in after and candidate.score is None:
            assert after[_shown(candidate.text)] == "excluded"
    rows = {
        row.locator("th").inner_text(): row.locator("td").all_inner_texts()
        for row in page.locator(".et-why tbody tr").all()
    }
    twice = {"expert"} if name == "contrastive-search" else set()  # its confidence is the expert's probability
    assert (set(explanation.readers) - twice) | set(step.chosen.parts) | {"score"} == set(rows)
    for reader in set(explanation.readers) - twice:
        assert rows[reader][0] == _percent(step.chosen.probability_of(reader))
        assert rows[reader][2] == (f"{step.weights[reader]:.2f}".replace("-", "−") if reader in step.weights else "")
    if name == "contrastive-search":
        assert rows["penalty"][:2] == [f"{step.chosen.parts['penalty']:.2f}", f"{step.greedy.parts['penalty']:.2f}"]
        assert step.greedy.repeats is not None
        repeated = explanation.texts[step.greedy.repeats]
        assert (
            f"is most like {_shown(repeated)} at token {step.greedy.repeats} ({rows['penalty'][1]})"
            in page.locator(".et-why").inner_text()
        )
        assert page.locator(".et-card").nth(index).locator(".et-repeated").inner_text() == repeated
    if name == "dola":
        layer = step.settings["layer"]
        largest = (
            f"layer {layer} · largest divergence: layer {layer} {step.settings[f'divergence of layer {layer}']:.2f}"
        )
        assert largest in page.locator(".et-facts").inner_text()
        assert "without the final norm" in page.locator(".et-own").first.inner_text()


def test_keys_move_and_pin_and_the_address_carries_the_state(
    compared: tuple[Path, dict[str, Explanation]], opened: Any
) -> None:
    file, explained = compared
    first = explained["dola"].steps[0].position
    page = opened(file)
    dola = page.get_by_role("listbox").nth(3)
    while _state(page).get("text") != "1.4":
        page.keyboard.press("Tab")  # over the quantities and the texts before, whose first tokens it selects
    assert _state(page)["token"] == str(first)
    for _ in range(2):
        page.keyboard.press("ArrowRight")
    assert _state(page) == {"shade": "probability", "text": "1.4", "token": str(first + 2)}
    focused = page.locator(":focus")
    assert focused.get_attribute("aria-selected") == "true"
    said = page.get_by_role("status").inner_text()
    assert said == focused.get_attribute("aria-label")
    assert f"probability {_percent(explained['dola'].steps[2].chosen.probability_of('expert'))}" in said
    page.keyboard.press("Enter")
    assert _state(page)["pinned"] == "1"
    page.get_by_role("listbox").nth(1).get_by_role("option").nth(4).hover()
    assert dola.locator(".et-current").count() == 1  # pinned: the mouse does not change it
    page.keyboard.press("End")
    assert _state(page)["token"] == str(len(explained["dola"].tokens) - 1)
    page.keyboard.press("ArrowUp")
    assert int(_state(page)["token"]) < len(explained["dola"].tokens) - 1
    page.keyboard.press("Home")
    page.get_by_role("radio", name="Disagreement of readers").check()
    state = _state(page)
    assert state == {"shade": "disagreement", "text": "1.4", "token": str(first), "pinned": "1"}
    # Only one token of a text is reached by Tab, and its neighbours by arrows.
    assert dola.locator("[tabindex='0']").count() == 1

    again = opened(file, hash_=page.evaluate("location.hash"))
    assert _state(again) == state
    assert again.get_by_role("radio", name="Disagreement of readers").is_checked()
    assert again.get_by_role("listbox").nth(3).get_by_role("option").first.get_attribute("aria-selected") == "true"
    assert again.locator(".et-panel").is_visible()
    again.keyboard.press("Tab")
    again.get_by_role("button", name="Close").click()
    assert not again.locator(".et-panel").is_visible()
    assert _state(again) == {"shade": "disagreement"}
    again.evaluate("location.hash = '#text=1.1&token=" + str(first) + "'")
    again.wait_for_function("document.querySelectorAll('.et-current').length === 1")
    assert again.get_by_role("listbox").nth(0).locator(".et-current").count() == 1
    # An address that means nothing changes nothing, and then tells what is shown.
    before, shown = again.locator(".et-panel").inner_text(), _state(again)
    for nonsense in ("text=9.9&token=3", "text=1.6&token=3", "token=x&shade=none", "%"):
        again.evaluate(
            "hash => new Promise(done => { window.onhashchange = done; location.hash = hash; })",
            nonsense,
        )
        assert again.locator(".et-panel").inner_text() == before
        assert _state(again) == shown
    for nonsense in ("#text=1.1&token=999", "#text=1.1&token=5.5", "#shade=bogus&token=abc"):
        wrong = again
        wrong.goto("about:blank")  # or only the hash would change
        wrong.goto(file.as_uri() + nonsense)
        assert wrong.locator(".et-current").count() == 0
        assert _state(wrong) == {"shade": "probability"}


def test_tokens_are_shaded_by_the_quantity_that_is_picked(
    compared: tuple[Path, dict[str, Explanation]], opened: Any
) -> None:
    file, explained = compared
    page = opened(file)

    def shares(name: str) -> list[float]:
        tokens = page.get_by_role("listbox").nth(list(STRATEGIES).index(name)).get_by_role("option")
        return [
            float(share) for share in tokens.evaluate_all("all => all.map(e => e.style.getPropertyValue('--et-share'))")
        ]

    steps = explained["contrastive-search"].steps
    assert shares("contrastive-search") == pytest.approx([s.chosen.probability_of("expert") for s in steps], abs=1e-3)
    page.get_by_role("radio", name="Penalty").check()
    penalties = [max(step.chosen.parts["penalty"], 0.0) for step in steps]
    assert shares("contrastive-search") == pytest.approx(penalties, abs=1e-3)
    assert set(shares("greedy")) == {0.0}
    page.get_by_role("radio", name="Margin over greedy search").check()
    margins = [step.margin or 0.0 for step in steps]
    assert shares("contrastive-search") == pytest.approx([margin / max(margins) for margin in margins], abs=1e-3)
    page.get_by_role("radio", name="Disagreement of readers").check()
    all_of = [step.disagreement or 0.0 for explanation in explained.values() for step in explanation.steps]
    dola = [(step.disagreement or 0.0) / max(all_of) for step in explained["dola"].steps]
    assert shares("dola") == pytest.approx(dola, abs=1e-3)


def test_a_sample_below_greedy_searchs_token_is_told_from_one_above(tmp_path: Path, opened: Any) -> None:
    """Margins 0.5, -0.25 and 0, and one of a token that the strategy excludes."""
    chosen = [_candidate(n, f" {n}", 0.3, score) for n, score in enumerate((0.0, 1.0, 0.25, 0.0, None))]
    other = _candidate(99, "other", 0.6, 0.5)
    steps = [_step(n, chosen[n], chosen[n] if n == 3 else other) for n in range(1, 5)]
    texts = tuple(f" {n}" for n in range(5))
    sampled = Explanation("nucleus", ("expert",), tuple(range(5)), texts, (False,) * 5, tuple(steps))
    file = tmp_path / "page.html"
    file.write_text(explorer_page("samples", [ExploredTexts("", [sampled], ["a note"])]), encoding="utf-8")
    page = opened(file)
    assert page.locator(".et-lower").count() == 0
    page.get_by_role("radio", name="Margin over greedy search").check()
    tokens = page.get_by_role("option")
    shares = tokens.evaluate_all(
        "all => all.map(e => (e.matches('.et-lower') ? -1 : 1) * e.style.getPropertyValue('--et-share'))"
    )
    assert shares == [1.0, -0.5, 0.0, -1.0]
    colours = tokens.evaluate_all("all => all.map(e => getComputedStyle(e).backgroundColor)")
    assert len(set(colours)) == 4
    assert "below" in page.locator(".et-scale").inner_text()
    tokens.nth(1).click()
    assert "scores lower than greedy search’s token" in page.locator(".et-facts").inner_text()
    assert tokens.nth(1).get_attribute("aria-label").split("; ")[2] == "margin over greedy search −0.25"
    tokens.nth(3).click()
    assert "excluded by the strategy" in page.locator(".et-facts").inner_text()
    assert page.locator(".et-own").inner_text() == "a note"


def test_a_page_of_beam_search_alone_promises_no_tokens() -> None:
    text = Continuation("Tom", "Tom was.", " was.", 3, 0.1)
    result = Comparison("expert", 0, ["Tom"], [parse_strategy("beam")], [[text]], [])
    page = result.as_html()
    assert "Point at a token" not in page
    assert "<title>expert: texts</title>" in page
    assert "chooses among whole texts" in page


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_only_and_text_stands_out(
    scheme: str, compared: tuple[Path, dict[str, Explanation]], opened: Any
) -> None:
    page = opened(compared[0], 360, color_scheme=scheme, has_touch=True)
    page.get_by_role("listbox").nth(4).locator(".et-left").last.tap()
    panel, text, token = (
        page.locator(selector).bounding_box() for selector in (".et-panel", ".et-open .et-text", ".et-current")
    )
    assert text["y"] + text["height"] <= panel["y"] < 800  # below the text, and on the screen
    assert text["y"] <= token["y"] < token["y"] + token["height"] <= text["y"] + text["height"]
    assert text["y"] >= 0
    assert page.evaluate("document.documentElement.scrollWidth") <= 360
    inks = page.evaluate(
        "[getComputedStyle(document.querySelector('.et-token')).color, "
        "getComputedStyle(document.querySelector('.et-card')).backgroundColor]"
    )
    bright = [sum(map(int, re.findall(r"\d+", ink)[:3])) / 3 for ink in inks]
    assert abs(bright[0] - bright[1]) > 150
    assert (bright[0] < bright[1]) == (scheme == "light")


def test_texts_of_every_script_and_characters_of_several_tokens(tmp_path: Path, opened: Any) -> None:
    arabic = _explanation(("يضيء", " القمر", " فوق", " النهر"), 1)
    chinese = _explanation(("老", "", "", "钟", "表", "\n"), 1)
    evil = _explanation((EVIL, EVIL, "b"), 1)
    file = tmp_path / "page.html"
    file.write_text(explorer_page(EVIL, [ExploredTexts(EVIL, [arabic, chinese, evil])], EVIL), encoding="utf-8")
    page = opened(file)
    assert page.title() == EVIL
    right_to_left = page.get_by_role("listbox").first
    assert right_to_left.evaluate("list => getComputedStyle(list).direction") == "rtl"
    tokens = right_to_left.get_by_role("option")
    assert tokens.all_inner_texts() == [" القمر", " فوق", " النهر"]
    boxes = [tokens.nth(i).bounding_box() for i in range(3)]
    assert boxes[0]["x"] > boxes[1]["x"] > boxes[2]["x"]
    tokens.first.click()
    page.keyboard.press("ArrowLeft")  # onwards
    assert _state(page)["token"] == "2"

    characters = page.get_by_role("listbox").nth(1).get_by_role("option")
    assert characters.all_inner_texts() == ["钟", "表", "\n"]
    characters.first.click()
    for position, part in ((3, "part 3 of 3 of a character"), (2, "part 2 of 3"), (1, "part 1 of 3")):
        assert _state(page)["token"] == str(position)
        assert part in page.locator(".et-facts").inner_text()
        assert characters.first.get_attribute("aria-selected") == "true"
        page.keyboard.press("ArrowLeft")
    assert page.get_by_role("listbox").nth(2).get_by_role("option").first.inner_text() == EVIL
    assert page.locator("h2").inner_text() == EVIL


def test_another_page_shows_an_element_and_hears_of_its_branches(tmp_path: Path, opened: Any) -> None:
    """An element that is put into a page as HTML, after the page was made."""
    element = explorer_element([ExploredTexts("", [_explanation(("a", "b", "c"), 1)])], branch=True)
    file = tmp_path / "host.html"
    file.write_text(
        f"<!DOCTYPE html><title>host</title><style>{explorer_style()}</style><script>{explorer_script()}</script>"
        "<div id=here></div>",
        encoding="utf-8",
    )
    page = opened(file)
    page.evaluate(
        "html => { window.heard = []; const here = document.getElementById('here');"
        "for (const name of ['explorer-branch', 'explorer-select'])"
        "  here.addEventListener(name, event => heard.push([name, event.detail]));"
        "here.innerHTML = html; }",
        element,
    )
    page.get_by_role("option").first.click()
    page.get_by_role("button", name="other").first.click()
    heard = page.evaluate("heard")
    assert ["explorer-select", {"group": 0, "text": 0, "position": 1, "pinned": True}] in heard
    assert heard[-1] == ["explorer-branch", {"group": 0, "text": 0, "position": 1, "token": 99}]
    assert page.evaluate("location.hash") == ""  # the address is the page's own
    page.evaluate("html => { document.getElementById('here').innerHTML = html; }", element)
    assert page.get_by_role("option").count() == 2


def test_a_narrow_box_of_a_wide_page_has_a_narrow_layout_and_prompts_fold(tmp_path: Path, opened: Any) -> None:
    folded = ExploredTexts("", [_explanation(("<|user|>", " b", " cathedral"), 1)], folds_prompts=True)
    file = tmp_path / "host.html"
    file.write_text(
        f"<!DOCTYPE html><title>host</title><style>{explorer_style()}</style>"
        f"<div id=here style='width: 300px'>{explorer_element([folded])}</div><script>{explorer_script()}</script>",
        encoding="utf-8",
    )
    page = opened(file)
    given = page.locator("details > span")
    assert not given.is_visible()
    page.locator("summary").click()
    assert given.inner_text() == "<|user|>"
    page.get_by_role("option").first.click()
    sections = page.locator(".et-bars > section")
    assert len({round(section.bounding_box()["x"]) for section in sections.all()}) == 1  # one below the other
    page.evaluate("document.getElementById('here').style.width = '1000px'")
    assert len({round(section.bounding_box()["x"]) for section in sections.all()}) == 2
