"""``decoding generate``: what is printed where, and with which exit code."""

import io
import json
import os
import re
import sys
from pathlib import Path

import pytest
from command_results import refused
from word_models import CONTEXT, WORDS, llama, save

from decoding.cli.app import run
from decoding.strategies.registry import parse_strategy

STORIES = Path(__file__).resolve().parents[4] / "shared" / "models" / "stories3M"


pytestmark = pytest.mark.usefixtures("models_loaded_once")


def test_the_prompt_and_its_continuation_are_printed(generate):
    code, out, err = generate("--prompt", "w1 w2 w3", "--max-new-tokens", "5")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"w1 w2 w3( \S+){5}\n", out)


@pytest.mark.parametrize(
    "strategy", ["contrastive-search", "contrastive-search:top_k=2", "greedy", "sampling", "beam:num_beams=2"]
)
def test_json_is_one_object_a_prompt(generate, strategy, tiny):
    code, out, err = generate(
        "--prompt", "w1 w2", "--prompt", "w3 w4", "--json", "--strategy", strategy, "--max-new-tokens", "4"
    )
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["prompt"] for record in records] == ["w1 w2", "w3 w4"]
    for record in records:
        assert record["text"] == record["prompt"] + record["continuation"]
        assert record["new_tokens"] == 4
        assert record["seconds"] > 0
        assert (record["model"], record["strategy"]) == (tiny, strategy.partition(":")[0])
    assert records[0]["parameters"] == parse_strategy(strategy).parameters


def test_set_reaches_the_strategy(generate):
    _, out, _ = generate("--prompt", "w1", "--json", "--set", "top_k=3", "--set", "penalty_alpha=0.5")
    assert json.loads(out)["parameters"] == {"penalty_alpha": 0.5, "top_k": 3, "max_history": None}


def test_zero_alpha_is_greedy_search(generate):
    greedy = generate("--prompt", "w1 w2", "--strategy", "greedy")
    assert generate("--prompt", "w1 w2", "--set", "penalty_alpha=0") == greedy


def test_a_prompt_from_standard_input(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\n"))
    code, out, _ = generate("--max-new-tokens", "3")
    assert code == 0
    assert out.startswith("w1 w2 ")


@pytest.mark.parametrize("strategy", ["contrastive-search", "greedy", "sampling"])
def test_a_stream_gives_the_same_text(generate, strategy):
    arguments = ("--prompt", "w1 w2", "--strategy", strategy, "--max-new-tokens", "8")
    assert generate(*arguments, "--stream")[1].split() == generate(*arguments)[1].split()


def test_a_seed_decides_what_is_drawn(generate):
    def drawn(seed):
        return generate("--prompt", "w1", "--strategy", "sampling", "--seed", seed, "--max-new-tokens", "20")[1]

    assert drawn("1") == drawn("1") != drawn("2")


def test_several_texts_of_one_prompt(generate):
    _, out, _ = generate("--prompt", "w1", "--strategy", "sampling", "--num-return-sequences", "3")
    assert len(set(out.splitlines())) == 3


def test_the_default_length_ends_at_the_context(generate):
    _, out, _ = generate("--prompt", "w1 w2", "--json")
    assert json.loads(out)["new_tokens"] == CONTEXT - 2


def test_results_are_written_too(generate, tmp_path):
    _, out, _ = generate("--prompt", "w1", "--json", "--output", str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b" / "generate.jsonl").read_text() == out


def test_what_follows_the_end_token_is_not_counted(tmp_path, capfd):
    model = llama()
    model.generation_config.eos_token_id = list(range(len(WORDS)))  # ends at once, whatever it says
    folder = save(model, tmp_path)
    assert run(["generate", "--model", folder, "--prompt", "w1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["new_tokens"] == 1


def test_a_chat_template_wraps_the_prompt(tmp_path, capfd):
    folder = save(llama(), tmp_path, chat_template="{% for m in messages %}w5 {{ m.content }} w6{% endfor %}")
    assert run(["generate", "--model", folder, "--prompt", "w1", "--chat", "--json", "--max-new-tokens", "3"]) == 0
    chat = json.loads(capfd.readouterr().out)
    assert run(["generate", "--model", folder, "--prompt", "w5 w1 w6", "--json", "--max-new-tokens", "3"]) == 0
    assert chat["text"] == json.loads(capfd.readouterr().out)["continuation"].lstrip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "contrastive-serch"], "did you mean contrastive-search"),
        (["--set", "topk=3"], "did you mean top_k?"),
        (["--set", "top_k"], "expected name=value"),
        (["--set", "top_k=3", "--set", "top_k=4"], "given twice"),
        (["--set", "top_k=four"], "must be a whole number"),
        (["--set", "top_k=0"], "must be a whole number from 1"),
        (["--set", "top_k=33"], "top_k=33: must be 1 to 32, the size of the model's vocabulary"),
        (["--strategy", "sampling:top_k=33"], "must be 0 to 32"),
        (["--set", "penalty_alpha=1.5"], "must be a number from 0 to 1"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", " \n "], "the prompt is empty"),
        (["--prompt", "w1 " * 60], "the prompt has 60 tokens and the model's context 48"),
        (["--strategy", "greedy", "--prompt", "w1 " * 48], "the prompt has 48 tokens and the model's context 48"),
        (["--max-new-tokens", "48"], "must be 1 to 46"),
        (["--device", "tpu9"], "must be one of cpu"),
        (["--dtype", "int8"], "must be auto"),
        (["--chat"], "no chat template"),
        (["--drafts", "exit:many"], "--drafts='exit:many': must end with how many layers are read, such as exit:8"),
        (["--drafts", ""], "--drafts='': must be prompt-lookup, amateur"),
        (["--drafts", "exit:2"], "drafts=exit:2: the model has 2 layers; must be exit:1 to exit:1"),
        (["--drafts", "amateur"], "drafts=amateur: this strategy has no amateur; must be prompt-lookup"),
        (["--strategy", "contrastive-decoding:amateur=~nobody-is-called-so/x"], "there is no such folder"),
        (["--strategy", f"contrastive-decoding:amateur={'x' * 300}"], "cannot be read ("),
        (["--drafts", "./absent"], "assistant ./absent: there is no such folder"),
        (["--drafts", "prompt-lookup", "--draft-tokens", "-1"], "--draft-tokens=-1: must be a whole number from 1"),
        (["--drafts", "prompt-lookup", "--draft-tokens", "few"], "--draft-tokens='few': must be a whole number from 1"),
        (["--draft-tokens", "4"], "draft_tokens=4: has an effect with drafts alone"),
        (["--drafts", "exit:1", "--strategy", "beam"], "drafts: beam reads no drafts"),
        (["--drafts", "exit:1", "--generation-config", "drafts=exit:1"], "--generation-config drafts is given too"),
        (["--drafts", "exit:1", "--compile"], "draft_tokens=auto (the default): with compile=True"),
        (["--stream", "--json"], "give one of them"),
        (["--stream", "--prompt", "w5"], "one prompt"),
        (["--stream", "--strategy", "beam"], "beam search"),
        (["--num-return-sequences", "2"], "or sampling"),
        (["--output", os.devnull], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(generate, arguments, message):
    prompt = [] if arguments[0] == "--prompt" or arguments[2:3] == ["--prompt"] else ["--prompt", "w1 w2"]
    if "--stream" in arguments and "--prompt" in arguments:
        prompt = ["--prompt", "w1 w2"]
    assert message in refused(*generate(*prompt, *arguments))


def test_an_empty_standard_input_is_an_empty_prompt(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert "the prompt is empty" in refused(*generate())


def test_a_trained_model_tells_a_story(capfd):
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES.name} is not here: the trained test models are not part of the repository")
    assert run(["generate", "--model", str(STORIES), "--prompt", "Once upon a time", "--max-new-tokens", "12"]) == 0
    assert capfd.readouterr().out.startswith("Once upon a time, there was a")
