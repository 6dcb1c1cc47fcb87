"""Sliders and fields set what command lines set: each end of each slider is a value that the strategy takes."""

from __future__ import annotations

import dataclasses

import pytest

from decoding.errors import OptionError
from decoding.play.controls import controls_of, offered_strategies, offered_strategy, spec_of
from decoding.strategies.parameters_text import parameter_types
from decoding.strategies.registry import STRATEGIES, StrategySpec, example_of, parse_strategy

OFFERED = offered_strategies()


def test_strategies_of_images_and_sound_are_not_offered() -> None:
    assert set(STRATEGIES) - set(OFFERED) == {"image-contrast", "audio-contrast"}


def _filled(name: str) -> dict[str, str]:
    """The values that a page begins with, and a text where it waits for one."""
    return {control.name: control.value or control.hint for control in controls_of(name)}


@pytest.mark.parametrize("name", OFFERED)
def test_every_parameter_has_a_control_that_begins_with_its_default(name: str) -> None:
    assert [control.name for control in controls_of(name)] == list(parameter_types(STRATEGIES[name]))
    assert spec_of(name, _filled(name)) == parse_strategy(example_of(name))


@pytest.mark.parametrize("name", OFFERED)
def test_all_that_a_control_offers_is_taken(name: str) -> None:
    filled = _filled(name)
    for control in controls_of(name):
        if control.kind == "slider":
            offered = [f"{value:g}" for value in (control.low, control.low + control.step, control.high)]
            assert control.low < control.high
            assert control.low <= float(control.value) <= control.high
            steps = (float(control.value) - control.low) / control.step
            assert steps == pytest.approx(round(steps))  # the default is a place of the slider
        elif control.kind == "text":
            continue
        else:
            offered = list(control.choices) or ["true", "false"]
        for text in offered:
            spec = _taken(name, {**filled, control.name: text})
            if spec is None:  # a word may need another parameter; a number of a slider needs none
                assert control.kind != "slider"
                continue
            value = getattr(spec.strategy, control.name)
            assert text in ("none", "true", "false") or str(value) == text or float(value) == float(text)


def _taken(name: str, values: dict[str, str]) -> StrategySpec | None:
    try:
        return spec_of(name, values)
    except OptionError:
        return None


def test_kinds_and_ranges_come_from_the_dataclass() -> None:
    controls = {control.name: control for name in ("contrastive-search", "dola") for control in controls_of(name)}
    alpha, top_k = controls["penalty_alpha"], controls["top_k"]
    assert (alpha.kind, alpha.low, alpha.high, alpha.value) == ("slider", 0.0, 1.0, "0.6")
    assert (top_k.kind, top_k.low, top_k.step, top_k.value) == ("slider", 1, 1, "4")
    assert controls["max_history"].kind == "text"
    assert controls["divergence"].choices == ("dola", "jensen-shannon")
    assert controls["final_norm"].kind == "flag"
    smallest, largest = (
        next(control for control in controls_of("adaptive-contrastive-search") if control.name == name)
        for name in ("min_top_k", "max_top_k")
    )
    assert smallest.high == 15  # the default of the other, which it may not exceed
    assert largest.low == 5


def test_a_strategy_is_named_as_on_the_command_line_and_nothing_takes_its_place() -> None:
    assert offered_strategy(" Contrastive_Search ") == "contrastive-search"
    for typed, message in (
        ("dolla", "unknown strategy 'dolla'; did you mean dola or lol? expected one of contrastive-search, "),
        (
            "dola:layers=2",
            "strategy 'dola:layers=2': its parameters have fields of their own here; expected dola alone",
        ),
        (
            "image-contrast",
            "strategy image-contrast: changes a prompt's images or sound, and this page has text alone; ",
        ),
        (" ", "no strategy is chosen: expected one of contrastive-search, "),
        (None, "no strategy is chosen"),
    ):
        with pytest.raises(OptionError) as refused:
            offered_strategy(typed)
        assert str(refused.value).startswith(message)


def test_values_are_checked_as_on_the_command_line() -> None:
    with pytest.raises(OptionError, match=r"^alpha='x': must be a number$"):
        spec_of("dola", {"alpha": "x"})
    with pytest.raises(OptionError, match=r"^context-aware needs context: fill in its field$"):
        spec_of("context-aware", {"context": " "})
    with pytest.raises(
        OptionError, match=r"^contrastive-decoding needs amateur: fill in its field, for instance amateur$"
    ):
        spec_of("contrastive-decoding", {"beta": "1"})
    spec = spec_of("dola", {"alpha": "0.2", "layers": "2,3", "final_norm": ""})
    assert spec.spec == "dola:layers=2,3,alpha=0.2"
    assert dataclasses.replace(spec.strategy, layers="high", alpha=0.1) == STRATEGIES["dola"]()
