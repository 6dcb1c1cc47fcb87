"""Strategies by name."""

import subprocess
import sys

import pytest

from decoding import ContrastiveSearch, DoLa, OptionError, Prompt
from decoding.strategies.baselines import Greedy
from decoding.strategies.registry import (
    STRATEGIES,
    StrategySpec,
    example_of,
    exportable_strategies,
    parameters_of,
    parse_strategy,
)

SPECS = [
    *map(example_of, STRATEGIES),
    "context-aware:context=Then, as now",
    "lol:amateur=a,lower_layers=0.5,2",
    "contrastive-decoding:amateur=self:skip_layers=8-11;dropout=0.2",
    "contrastive-decoding:amateur=instead:What, me?,form=log_probs",
    "weighted-contrast:terms=1.5*expert - 0.5*instead:What is 3*4 - or 2?,alpha=none",
    "weighted-contrast:terms=-.1234567*./small + 1e-07*last-token + 1*self:mask_heads=1.0+1.3,plausible=reader 2",
    "weighted-contrast:terms=2*expert - 1*prompt:Lie.,weight_by=jsd,when=first 3,form=log_probs",
    "weighted-contrast:terms=2*expert - 1*last-token,when=divergence > quantile 0.8",
    "guidance:negative=Be dull, please.,scale=2.0",
    "documents:documents=A, and B;C",
    "masked-heads:heads=3.1+0.0,beta=0.5",
    "skipped-layers:layers=1;2",
    "skipped-layers:layers=0.5",
]


@pytest.mark.parametrize("spec", SPECS)
def test_a_choice_round_trips_through_its_spec(spec):
    choice = parse_strategy(spec)
    again = parse_strategy(choice.spec)
    assert again == choice
    assert (again.spec, again.label) == (choice.spec, choice.label)


def test_parameters_are_parsed_by_their_types():
    choice = parse_strategy("contrastive-search:penalty_alpha=1,top_k=5")
    assert choice.strategy == ContrastiveSearch(penalty_alpha=1.0, top_k=5)
    assert isinstance(choice.strategy.penalty_alpha, float)
    assert choice.label == "contrastive-search(penalty_alpha=1.0, top_k=5)"


def test_lists_texts_and_none():
    assert parse_strategy("dola:layers=2,4,alpha=0.2").strategy == DoLa(layers=[2, 4], alpha=0.2)
    assert parse_strategy("dola", {"layers": "low", "per_row": "false"}).strategy == DoLa(layers="low", per_row=False)
    lol = parse_strategy("lol:amateur=prompt:lie, and lie,lower_layers=0.5,3,guidance=none,fusion=entropy").strategy
    assert (lol.amateur, lol.lower_layers, lol.guidance, lol.fusion) == (
        "prompt:lie, and lie",
        (0.5, 3),
        None,
        "entropy",
    )


def test_semicolons_part_a_list_as_commas_do_and_are_kept_in_a_text():
    lol = parse_strategy("lol", {"amateur": "a", "lower_layers": "0.5;3", "guidance": "Be right; be brief."}).strategy
    assert (lol.lower_layers, lol.guidance) == ((0.5, 3), "Be right; be brief.")


def test_the_parameters_of_a_strategy():
    assert parameters_of("contrastive_search:top_k=3") == ["penalty_alpha", "top_k", "max_history"]
    assert parameters_of("greedy") == []
    with pytest.raises(OptionError, match="did you mean dola"):
        parameters_of("dolla")


def test_settings_go_before_inline_parameters():
    assert parse_strategy("beam:num_beams=3", {"num_beams": "5"}).parameters == {"num_beams": 5}


def test_names_are_forgiving_about_case_and_underscores():
    assert parse_strategy("Contrastive_Search").name == "contrastive-search"


def test_samplings_by_their_papers_names():
    top_k, nucleus, typical = (parse_strategy(name).parameters for name in ("top-k", "nucleus", "typical"))
    assert (top_k["top_k"], top_k["top_p"], top_k["typical_p"]) == (50, 1, 1)
    assert (nucleus["top_k"], nucleus["top_p"], nucleus["typical_p"]) == (0, 0.95, 1)
    assert (typical["top_k"], typical["top_p"], typical["typical_p"]) == (0, 1, 0.95)
    assert parse_strategy("typical:typical_p=0.2").label.startswith("typical(")
    assert all(parse_strategy(name).is_stochastic for name in ("top-k", "nucleus", "typical"))


def test_greedy_has_no_parameters():
    assert parse_strategy("greedy").label == parse_strategy("greedy").spec == "greedy"
    assert parse_strategy("greedy").parameters == {}


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("contrastive-serch", "did you mean contrastive-search"),
        ("zzz", "unknown strategy 'zzz'; expected one of contrastive-search, adaptive-contrastive-search"),
        ("contrastive-search:topk=3", "did you mean top_k? expected one of penalty_alpha, top_k"),
        ("greedy:top_k=3", "it takes none"),
        ("typical:typical_p=0", "must be a number above 0 up to 1"),
        ("nucleus:typical_p=1.5", "typical_p=1.5: must be a number from 0 to 1"),
        ("beam:3", "name:parameter=value"),
        ("contrastive-search:top_k=four", "top_k='four': must be a whole number"),
        ("contrastive-search:top_k=2.5", "must be a whole number"),
        ("contrastive-search:top_k=0", "must be a whole number from 1"),
        ("contrastive-search:penalty_alpha=much", "must be a number"),
        ("contrastive-search:penalty_alpha=1.5", "must be a number from 0 to 1"),
        ("contrastive-search:penalty_alpha=nan", "must be a number from 0 to 1"),
        ("sampling:temperature=0", "above 0"),
        ("sampling:temperature=inf", "above 0"),
        ("sampling:top_p=0", "above 0 up to 1"),
        ("sampling:top_p=2", "from 0 to 1"),
        ("sampling:top_k=-1", "from 0"),
        ("beam:num_beams=1", "from 2"),
        ("contrastive-decoding", "needs amateur: for instance contrastive-decoding:amateur=amateur"),
        ("lol:amateur=amateur", "needs lower_layers: for instance lol:lower_layers=0.5,0.75"),
        ("dola:layers=middle", "must be low, high, or layer numbers"),
        ("dola:per_row=1", "true or false"),
        ("contrastive-decoding:amateur=a,form=logit", "must be logits or log_probs"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_accepted(spec, message):
    with pytest.raises(OptionError) as caught:
        parse_strategy(spec)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)


def test_names_are_known_without_model_code():
    program = (
        "import sys; from decoding.strategies import registry; print(*registry.STRATEGIES, len(registry.STRATEGIES)); "
        "assert 'dola' in registry.STRATEGIES and 'no such' not in registry.STRATEGIES; "
        "print(*registry.exportable_strategies()); print({'torch', 'transformers', 'numpy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    names, exportable, imported = done.stdout.splitlines()
    assert names.split() == [*STRATEGIES, str(len(STRATEGIES))]
    assert exportable.split() == exportable_strategies()
    assert imported == "set()"


def test_the_name_of_a_class():
    assert [STRATEGIES.name_of(kind) for kind in (DoLa, Greedy, int)] == ["dola", "greedy", None]


def test_an_amateur_that_is_a_prompt_is_written_as_a_command_line_would():
    made = StrategySpec("contrastive-decoding", STRATEGIES["contrastive-decoding"](amateur=Prompt("lie, and lie")))
    assert made.label.startswith("contrastive-decoding(amateur=prompt:lie, and lie,")
    assert parse_strategy(made.spec).strategy.amateur == "prompt:lie, and lie"
