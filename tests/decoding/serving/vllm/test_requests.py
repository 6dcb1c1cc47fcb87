"""What a request to vLLM may ask for: the parameters, defaults and accepted values of the strategies' own classes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import decoding
from decoding.errors import OptionError
from decoding.serving.vllm.readers import EngineReaders
from decoding.serving.vllm.requests import REQUESTS, Request, requested

DEPTH = 12
ENGINE = EngineReaders(
    DEPTH, tied=False, layers=tuple(range(DEPTH)), amateur="amateur", amateur_layers=(0,) * DEPTH, second_prompts=True,
    candidates=64,
)  # fmt: skip
BARE = EngineReaders(DEPTH, tied=False)
FEW = EngineReaders(DEPTH, tied=False, layers=(6, 8))
CLASSES: dict[str, Any] = {
    "dola": decoding.DoLa,
    "contrastive-decoding": decoding.ContrastiveDecoding,
    "lol": decoding.LOL,
    "context-aware": decoding.ContextAware,
    "guidance": decoding.Guidance,
    "contrastive-search": decoding.ContrastiveSearch,
    "sled": decoding.SLED,
    "deco": decoding.DeCo,
    "adaptive-context": decoding.AdaptiveContext,
    "weighted-contrast": decoding.WeightedContrast,
}
NAMED = "dola, contrastive-decoding, lol, context-aware, guidance, contrastive-search, sled, deco, adaptive-context, "
NAMED += "weighted-contrast, none"
# What a class has and its request has not: readers that the engine has, texts, and what only batches and prompts have.
LEFT_OUT = {
    "dola": {"per_row"},
    "contrastive-decoding": {"amateur", "amateur_context", "tokenizer", "placement"},
    "lol": {"amateur", "guidance", "refocus_weight", "language", "tokenizer", "placement"},
    "context-aware": {"context", "tokenizer", "placement"},
    "guidance": {"tokenizer", "placement"},
    "contrastive-search": {"max_history"},
    "sled": set(),
    "deco": set(),
    "adaptive-context": {"context", "tokenizer", "placement"},
    "weighted-contrast": {"tokenizer", "placement"},
}
# What a request has and its class has not.
ADDED = {"context-aware": {"prompt_without_context"}, "adaptive-context": {"prompt_without_context"}}
# What they cannot be made without, besides.
GIVEN: dict[str, dict[str, Any]] = {
    "contrastive-decoding": {"amateur": "amateur"},
    "lol": {"amateur": "amateur"},
    "context-aware": {"context": "The town lies. "},
    "adaptive-context": {"context": "The town lies. "},
}
ASKED: dict[str, dict[str, Any]] = {
    "lol": {"lower_layers": [0.5]},
    "context-aware": {"prompt_without_context": [1, 2]},
    "adaptive-context": {"prompt_without_context": [1, 2]},
    "weighted-contrast": {"terms": "1.5*expert - 0.5*amateur"},
}


def of_class(name: str, fields: Mapping[str, Any]) -> Any:
    """The strategy of the library with these fields."""
    own = {field: value for field, value in fields.items() if field not in ADDED.get(name, ())}
    return CLASSES[name](**own, **GIVEN.get(name, {}))


def refusal(make: Callable[[], Any]) -> str | None:
    """The message of an OptionError; None where there is none."""
    try:
        make()
    except OptionError as error:
        return str(error)
    return None


@pytest.mark.parametrize("name", REQUESTS)
def test_fields_and_defaults_are_those_of_the_class(name: str) -> None:
    own = {field.name: field.default for field in dataclasses.fields(CLASSES[name])}
    requests = {field.name: field.default for field in dataclasses.fields(REQUESTS[name])}
    assert own.keys() - requests.keys() == LEFT_OUT[name]
    added = ADDED.get(name, set())
    assert requests.keys() - own.keys() == added
    # A field without a default comes after one in the base: it has None, and is asked for.
    asked = {field for field, default in own.items() if default is dataclasses.MISSING} - LEFT_OUT[name]
    assert {field: own[field] for field in requests if field not in asked | added} == {
        field: default for field, default in requests.items() if field not in asked | added
    }
    for field in asked | added:
        with pytest.raises(OptionError, match=rf"^{name}: .*{field}"):
            requested({"strategy": name}, ENGINE)


NUMBERS = [0, 1, 0.5, -0.1, 1.5, 1e39, float("nan"), float("inf"), True, None, "x", [], np.float32(0.25), np.int64(1)]
COUNTS = [1, 4, 0, -1, 2.5, True, None, [], np.int64(3)]
VALUES: dict[str, list[Any]] = {
    **dict.fromkeys(("alpha", "beta", "amateur_weight", "lower_amateur_weight", "fusion_weight"), NUMBERS),
    **dict.fromkeys(("penalty_alpha", "scale"), NUMBERS),
    **dict.fromkeys(("evolution_rate", "floor", "threshold_top_p"), NUMBERS),
    **dict.fromkeys(("evolution_scale", "steps", "threshold_top_k"), COUNTS),
    "top_k": [1, 4, 64, 0, -1, 2.5, True, None, [], np.int64(3)],
    "amateur_temperature": [*NUMBERS, 2.0],
    "divergence": ["dola", "jensen-shannon", "kl", None, 1],
    "form": ["logits", "log_probs", "log-probs", None, 0],
    "fusion": ["static", "entropy", "mean", None],
    "final_norm": [True, False, None, "yes", 2, 0.0],
    "mask": ["top-n-sigma", "p-less", "top-p", None, 1],
    "plausible": ["expert", "reader 2", "reader 1", "amateur", None, 2],
    "weight_by": ["jsd", "entropy", "kl", None, 1],
    "when": ["confidence < 0.5", "entropy>2", " divergence > .1 ", "confidence", "nan", None, 0.5],
    "layers": [
        "low", "high", "all", [1, 3], [3, 1, 3], (0, 11), [], [0.5], [True], ["x"], None, {}, np.array([2, 4]),
    ],
    "lower_layers": [[6], [0.5, 3], [3, 3], [1.5], [0.0], [-1], [True], ["x"], None, "x", 0.5, np.array([2, 4])],
}  # fmt: skip


@pytest.mark.parametrize("name", REQUESTS)
def test_a_request_accepts_what_the_class_accepts(name: str) -> None:
    accepted = refused = 0
    base = ASKED.get(name, {})
    second = getattr(REQUESTS[name], "second_field", None)  # of which the class has more kinds
    for field in (field.name for field in dataclasses.fields(REQUESTS[name]) if field.name != second):
        for value in VALUES[field]:
            fields = {**base, field: value}
            if field == "amateur_temperature":
                fields["form"] = "log_probs"
            right = refusal(lambda fields=fields: of_class(name, fields))  # type: ignore[misc]
            given = refusal(lambda fields=fields: requested({"strategy": name, **fields}, ENGINE))  # type: ignore[misc]
            if right is not None:
                assert given is not None, (field, value)
                takes_functions = field in ("weight_by", "when")  # the class, which says so
                if not isinstance(value, str) and not takes_functions:  # flat fields make numbers and lists of text
                    assert given == f"{name}: {right}", (field, value)
                refused += 1
                continue
            assert given is None, (field, value)
            request, strategy = REQUESTS[name](**fields), of_class(name, fields)
            for known in (known for known in dataclasses.fields(request) if known.name != second):
                assert getattr(request, known.name) == getattr(strategy, known.name), (field, value, known.name)
            accepted += 1
    assert accepted
    assert refused


def test_a_temperature_goes_with_log_probabilities_alone() -> None:
    fields = {"amateur_temperature": 0.5}
    with pytest.raises(OptionError) as expected:
        of_class("contrastive-decoding", fields)
    with pytest.raises(OptionError) as error:
        requested({"strategy": "contrastive-decoding", **fields}, ENGINE)
    assert str(error.value) == f"contrastive-decoding: {expected.value}"


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ({"alpha": "0.2"}, {"alpha": 0.2}),
        ({"alpha": "1"}, {"alpha": 1}),
        ({"final_norm": 1}, {"final_norm": True}),
        ({"final_norm": "0"}, {"final_norm": False}),
        ({"final_norm": "TRUE"}, {"final_norm": True}),
        ({"layers": "1,3"}, {"layers": [1, 3]}),
        ({"layers": "3; 1"}, {"layers": [1, 3]}),
        ({"layers": "3"}, {"layers": [3]}),
        ({"layers": 3}, {"layers": [3]}),
    ],
    ids=lambda fields: "-".join(f"{key}={value!r}" for key, value in fields.items()),
)
def test_flat_fields_are_numbers_and_lists(text: dict[str, Any], value: dict[str, Any]) -> None:
    assert requested({"strategy": "dola", **text}, ENGINE) == requested({"strategy": "dola", **value}, ENGINE)


def test_layers_become_numbers_of_the_model() -> None:
    def layers(fields: dict[str, Any], engine: EngineReaders = ENGINE) -> Any:
        request: Any = requested(fields, engine)
        return getattr(request, "layers", None) or request.lower_layers

    assert layers({"strategy": "dola"}) == (6, 8, 10)
    assert layers({"strategy": "dola", "layers": "low"}) == (0, 2, 4)
    tied = dataclasses.replace(ENGINE, tied=True)
    assert layers({"strategy": "dola", "layers": "low"}, tied) == (2, 4)
    assert layers({"strategy": "lol", "lower_layers": [0.5, 3, 0.99]}) == (3, 6, 11)
    # Without weight they are not read, as in the class.
    assert layers({"strategy": "lol", "lower_layers": [0.5], "fusion_weight": 0}) == ()
    assert layers({"strategy": "lol", "lower_layers": [0.5], "fusion_weight": 0, "fusion": "entropy"}) == (6,)
    assert layers({"strategy": "sled"}) == tuple(range(12))
    assert layers({"strategy": "sled", "layers": "0.5,3"}) == (3, 6)
    assert layers({"strategy": "deco"}) == (8, 9, 10)


@pytest.mark.parametrize(
    ("fields", "engine", "message"),
    [
        ({"strategy": "dolla"}, ENGINE, "strategy='dolla'; did you mean dola or lol? expected one of " + NAMED),
        ({"strategy": None}, ENGINE, "strategy=None; did you mean none? expected one of " + NAMED),
        ({"strategy": ["dola"]}, ENGINE, "strategy=['dola']; did you mean dola? expected one of " + NAMED),
        ({"strategy": "dola", "alhpa": 1}, ENGINE, "dola: no parameter 'alhpa'; did you mean alpha? expected one of "
         "alpha, layers, divergence, final_norm"),
        ({"strategy": "dola", "per_row": False}, ENGINE, "dola: no parameter 'per_row'; expected one of "
         "alpha, layers, divergence, final_norm"),
        ({"strategy": "none", "alpha": 0.1}, ENGINE, "strategy 'none' has no parameters, got alpha"),
        ({"strategy": "contrastive-decoding"}, BARE, "contrastive-decoding: this engine has no amateur; start it with "
         "one (\"amateur\": a model's folder or name)"),
        ({"strategy": "lol", "lower_layers": [1]}, BARE, "lol: this engine has no amateur; start it with one "
         "(\"amateur\": a model's folder or name)"),
        ({"strategy": "dola"}, BARE, "dola: layers='high': this engine shows no lower layers of 0 to 11; start it with "
         '"layers": [6, 8, 10]'),
        ({"strategy": "dola"}, FEW, "dola: layers='high': this engine shows layers 6, 8 of 0 to 11; start it with "
         '"layers": [6, 8, 10]'),
        ({"strategy": "dola", "layers": [2, 12]}, FEW, "dola: layers=(2, 12): no lower layer 12; must be from 0 to 11"),
        ({"strategy": "dola", "layers": "-1"}, FEW, "dola: layers=(-1,): no lower layer -1; must be from 0 to 11"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_refusals_say_what_is_accepted(fields: dict[str, Any], engine: EngineReaders, message: str) -> None:
    with pytest.raises(OptionError) as error:
        requested(fields, engine)
    assert str(error.value) == message


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "context-aware"}, "context-aware: prompt_without_context='': must be text, or token ids"),
        ({"strategy": "context-aware", "prompt_without_context": []}, "context-aware: prompt_without_context=[]: must "
         "be text, or at least one token id"),
        ({"strategy": "guidance", "negative": [1, "x"]}, "guidance: negative=[1, 'x']: must be text, or at least one "
         "token id"),
        ({"strategy": "guidance", "negative": 7}, "guidance: negative=7: must be text, or token ids"),
        ({"strategy": "contrastive-search", "top_k": 65}, "contrastive-search: top_k=65: this engine reads at most 64 "
         'candidates of a request; start it with "candidates": 65'),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_refusals_of_several_readings(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        requested(fields, ENGINE)
    assert str(error.value) == message


@pytest.mark.parametrize(("strategy", "needs"), [("guidance", "second_prompts"), ("contrastive-search", "candidates")])
def test_an_engine_says_what_several_readings_need(strategy: str, needs: str) -> None:
    with pytest.raises(OptionError, match=f'^{strategy}: .*start it with "{needs}": '):
        requested({"strategy": strategy}, BARE)


def test_a_text_that_looks_like_a_number_stays_a_text() -> None:
    request: Any = requested({"strategy": "guidance", "negative": "12"}, ENGINE)
    assert request.second == "12"


@pytest.mark.parametrize(
    ("terms", "engine", "message"),
    [
        ("expert", ENGINE, "terms='expert': must be text such as '1.5*expert - 0.5*amateur'"),
        ("1*expert - 1*gpt2", ENGINE, "terms: 'gpt2' is no reader here; must be expert, amateur (the engine's), "),
        ("1*expert - 1*instead:", ENGINE, "terms: 'instead:' is no reader here"),
        ("1*expert - 1*self:skip_layers=1", ENGINE, "terms: 'self:skip_layers=1' is no reader here"),
        ("1*expert - 1*self", ENGINE, "terms: 'expert' is there twice; give each reader one weight"),
        ("2*expert - 1*last-token - 1*instead:x", ENGINE, "terms: 'second prompt' is there twice"),
        ("1e999*expert", ENGINE, "terms='1e999*expert': a weight is too large; must be a finite number"),
        ("1*expert - 1*amateur", BARE, "weighted-contrast: this engine has no amateur; start it with one"),
        ("1*expert - 1*last-token", BARE, "weighted-contrast: this engine reads no second prompts; start it with"),
        ("2*expert - 1*amateur - 1*last-token", dataclasses.replace(ENGINE, adapter=True), "weighted-contrast: terms="
         "'2*expert - 1*amateur - 1*last-token': with an adapter as amateur a request has no second prompt beside it"),
    ],
)  # fmt: skip
def test_refusals_of_terms(terms: str, engine: EngineReaders, message: str) -> None:
    with pytest.raises(OptionError) as error:
        requested({"strategy": "weighted-contrast", "terms": terms}, engine)
    assert str(error.value).removeprefix("weighted-contrast: ").startswith(message.removeprefix("weighted-contrast: "))


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"mask": "top-p"}, "mask='top-p': must be top-n-sigma or p-less"),
        ({"plausible": "amateur"}, "plausible='amateur': no reader has this role; expected one of expert, reader 2"),
        ({"weight_by": "kl"}, "weight_by='kl': must be jsd or entropy"),
        ({"weight_by": len}, "weight_by=<built-in function len>: must be jsd or entropy"),
        ({"when": "first 2"}, "when='first 2': must be a condition on the token itself, such as 'confidence < 0.5', "),
        ({"when": "entropy > quantile 0.8"}, "when='entropy > quantile 0.8': must be a condition on the token itself"),
        ({"when": len}, "when=<built-in function len>: must be a condition on the token itself"),
        ({"weight_by": "jsd", "terms": "1*expert"}, "terms: a divergence needs a reader beside the anchor with a wei"),
        ({"when": "divergence > 0.1", "terms": "1*expert - 0*amateur"}, "terms: a divergence needs a reader beside"),
    ],
    ids=lambda value: "-".join(map(str, value.values())) if isinstance(value, dict) else "",
)  # fmt: skip
def test_refusals_of_strengths_and_masks(fields: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError) as error:
        requested({"strategy": "weighted-contrast", "terms": "1.5*expert - 0.5*amateur", **fields}, ENGINE)
    assert str(error.value).startswith(f"weighted-contrast: {message}")


def test_the_anchor_is_a_term_by_its_number() -> None:
    def anchor(plausible: str) -> str:
        terms = "0.5*last-token + 1*expert - 0.5*amateur"
        request: Any = requested({"strategy": "weighted-contrast", "terms": terms, "plausible": plausible}, ENGINE)
        return request.anchor

    assert [anchor(role) for role in ("expert", "reader 1", "reader 3")] == ["expert", "second prompt", "amateur"]
    with pytest.raises(OptionError, match=r"plausible='reader 2': no reader has this role"):
        anchor("reader 2")


def test_terms_say_what_is_read() -> None:
    def read(terms: str) -> tuple[Any, ...]:
        request: Any = requested({"strategy": "weighted-contrast", "terms": terms}, ENGINE)
        return request.weights, request.needs_amateur, request.reads_second_prompt, request.second

    assert read("1.5*expert - 0.5*amateur") == ({"expert": 1.5, "amateur": -0.5}, True, False, None)
    assert read("-1*last-token") == ({"expert": 0.0, "second prompt": -1.0}, False, True, None)
    assert read("2*self - 1*instead:3 * 4 - x") == ({"expert": 2.0, "second prompt": -1.0}, False, True, "3 * 4 - x")


@pytest.mark.parametrize(("strategy", "field"), [("sled", "evolution_scale"), ("deco", "threshold_top_k")])
def test_more_tokens_than_the_model_has_are_refused(strategy: str, field: str) -> None:
    engine = dataclasses.replace(ENGINE, vocab_size=100)
    assert requested({"strategy": strategy, field: 100}, engine) is not None
    with pytest.raises(OptionError, match=f"^{strategy}: {field}=101: must be 1 to 100, the size of the model's voca"):
        requested({"strategy": strategy, field: 101}, engine)


def test_none_is_the_models_own_logits() -> None:
    assert requested({"strategy": "none"}, BARE) is None


# What JSON has.
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner, max_size=2),
    max_leaves=5,
)
NAMES = sorted({field.name for request in REQUESTS.values() for field in dataclasses.fields(request)})
LIKELY = st.sampled_from(
    [value for values in VALUES.values() for value in values if not isinstance(value, np.ndarray)]
    + ["low", "0.5", "1,3", "0.5;2", "12", "1e9", " 3 ", "", ",", "nan", 10**400, -(10**30), 0.3, 6, [12], [0, 1]]
)


@settings(max_examples=150, deadline=None, database=None, derandomize=True)
@given(
    st.sampled_from([*REQUESTS, "none"]) | JSON,
    st.dictionaries(st.sampled_from([*NAMES, "amateur", "Alpha", ""]), LIKELY | JSON, max_size=4),
    st.sampled_from([ENGINE, BARE, FEW]),
)
def test_any_fields_make_a_request_or_one_line(strategy: Any, fields: dict[str, Any], engine: EngineReaders) -> None:
    asked = {**fields, "strategy": strategy}
    if (line := refusal(lambda: requested(asked, engine))) is not None:
        assert line.strip()
        assert "\n" not in line
        assert len(line) < 500
        return
    request = requested(asked, engine)
    if strategy == "none":
        assert request is None
        return
    assert isinstance(request, Request)
    assert request.on(engine) == request  # engines hold them so
    assert isinstance(hash(request.kind), int)
    assert isinstance(hash(request), int)
