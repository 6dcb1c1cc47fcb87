"""``decoding generate`` with options of the generation config, its own or the folder's, and with drafts."""

import json
import shutil

import pytest
import torch
from command_results import refused
from opened_drafts import opened_drafts
from word_models import PROMPT

import decoding
from decoding.drafts.options import DraftOptions
from decoding.strategies.registry import parse_strategy

OPTIONS = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 9], "eos_token_id": [7, 8]}


pytestmark = pytest.mark.usefixtures("models_loaded_once")


# Options are read in one place; transformers' own search, its beams and a strategy's session heed them, each its way.
@pytest.mark.parametrize(
    ("strategy", "option"),
    [
        *(("dola:layers=1", option) for option in OPTIONS),
        ("greedy", "repetition_penalty"),
        ("beam", "no_repeat_ngram_size"),
    ],
)
def test_an_option_of_the_generation_config_gives_the_tokens_of_generate_with_it(option, strategy, generate, tiny):
    value = OPTIONS[option]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    code, out, err = generate(
        "--prompt", PROMPT, "--strategy", strategy, "--max-new-tokens", "12", "--generation-config", f"{option}={text}",
        "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["generation_config"][option] == value
    model, tokenizer = decoding.load(tiny, "cpu")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    spec = parse_strategy(strategy)
    ways = {"greedy": {}, "beam": {"num_beams": 4}}.get(strategy, {"custom_generate": spec.strategy})
    made = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **ways, **{option: value})
    assert record["continuation"].strip() == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


def test_a_sampler_of_the_generation_config_is_that_of_generate(generate, tiny):
    result = generate("--prompt", PROMPT, "--strategy", "sampling:top_p=1.0", "--max-new-tokens", "12", "--seed", "3",
                      "--generation-config", "min_p=0.9", "--json")  # fmt: skip
    model, tokenizer = decoding.load(tiny, "cpu")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    made = []
    for min_p in (0.9, None):
        torch.manual_seed(3)
        new = model.generate(ids, max_new_tokens=12, do_sample=True, top_k=0, min_p=min_p)[0, ids.shape[1] :]
        made.append(tokenizer.decode(new, skip_special_tokens=True))
    assert json.loads(result[1])["continuation"].strip() == made[0] != made[1]


def test_what_the_folder_has_acts_unless_the_call_says_otherwise(generate, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "penalised")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"repetition_penalty": 3.0, "temperature": 0.5}))
    asked = ("--prompt", PROMPT, "--strategy", "greedy", "--max-new-tokens", "12", "--json")
    plain, own, off = (
        json.loads(generate(*asked, *more)[1])
        for more in (
            (), ("--model", str(folder)), ("--model", str(folder), "--generation-config", "repetition_penalty=1"),
        )
    )  # fmt: skip
    assert plain["continuation"] == off["continuation"] != own["continuation"]
    shown = [record["generation_config"].get("repetition_penalty") for record in (plain, own, off)]
    assert shown == [None, 3.0, 1.0]
    assert "temperature" not in own["generation_config"]  # which has no effect on greedy search


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("repetition_penalti=1.2", "transformers has no such option; did you mean repetition_penalty"),
        ("repetition_penalty=high", "repetition_penalty='high': must be a number"),
        ("max_new_tokens=9", "max_new_tokens: is given by --max-new-tokens N"),
        ("num_return_sequences=2", "is given by --num-return-sequences N"),
        ("min_p=0.1", "min_p: has an effect with sampling alone, and contrastive-search has none"),
    ],
)
def test_a_wrong_option_of_the_generation_config_is_one_line(option, message, generate):
    assert message in refused(*generate("--prompt", PROMPT, "--generation-config", option))


# Which strategy reads which drafts is held by tests/decoding/generation; here each is given once on the command line.
@pytest.mark.parametrize(
    ("strategy", "drafts"),
    [
        ("contrastive-search", "prompt-lookup"), ("greedy", "exit:1"), ("dola:layers=1", "prompt-lookup"),
        ("sampling", "itself"),
    ],
)  # fmt: skip
def test_drafts_make_the_same_text(strategy, drafts, generate, tiny):
    drafts = tiny if drafts == "itself" else drafts
    asked = ("--prompt", PROMPT, "--prompt", "w7 w8", "--strategy", strategy, "--max-new-tokens", "12", "--json")
    if strategy == "sampling":  # which has one token to draw from: drafts change which draws are made
        asked = (*asked, "--set", "top_k=1")
    plain = [json.loads(line) for line in generate(*asked)[1].splitlines()]
    with opened_drafts() as opened:
        code, out, err = generate(*asked, "--drafts", drafts, "--draft-tokens", "3")
    assert (code, err) == (0, "")
    assert opened == [DraftOptions(drafts, 3)] * 2
    for with_drafts, without in zip(map(json.loads, out.splitlines()), plain, strict=True):
        assert with_drafts["text"] == without["text"]
        assert (with_drafts["generation_config"]["drafts"], with_drafts["generation_config"]["draft_tokens"]) == (
            drafts, 3
        )  # fmt: skip
        assert "drafts" not in without["generation_config"]


def test_drafts_of_a_stream_and_of_a_generation_config(generate):
    asked = ("--prompt", PROMPT, "--max-new-tokens", "12")
    plain = generate(*asked)
    for more in (["--drafts", "prompt-lookup", "--stream"], ["--generation-config", "drafts=prompt-lookup"]):
        with opened_drafts() as opened:
            assert generate(*asked, *more) == plain
        assert opened == [DraftOptions("prompt-lookup", None)]


def test_drafts_of_a_folder_act_unless_the_call_or_beams_leave_them_out(generate, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "drafting")
    config = json.loads((folder / "generation_config.json").read_text())
    config.pop("_from_model_config", None)  # with which transformers leaves out what it does not know
    (folder / "generation_config.json").write_text(json.dumps(config | {"drafts": "exit:1", "draft_tokens": 2}))
    asked = ("--prompt", PROMPT, "--max-new-tokens", "8")
    own = (*asked, "--model", str(folder))
    with opened_drafts() as opened:
        assert generate(*own) == generate(*asked)
        assert generate(*own, "--strategy", "greedy", "--draft-tokens", "auto") == generate(
            *asked, "--strategy", "greedy"
        )
    assert opened == [DraftOptions("exit:1", 2), DraftOptions("exit:1", None)]
    with opened_drafts() as opened:
        assert generate(*own, "--drafts", "none") == generate(*asked)
        assert generate(*own, "--strategy", "beam") == generate(*asked, "--strategy", "beam")
    assert opened == []
