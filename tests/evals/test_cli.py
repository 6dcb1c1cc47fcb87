"""``decoding compare`` and ``decoding demo``."""

import copy
import json
import math
import re
import shutil
from pathlib import Path

import pytest
from chat_tokenizers import INSTRUCTIONS
from command_results import refused
from rich.console import Console

from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.compare.compare import Comparison, Figures, repeated_words, show_texts
from decoding.evals.compare.demo import verdict
from decoding.evals.compare.explanations import as_markdown, as_table
from decoding.evals.metrics import repetition
from decoding.explanation.records import Candidate, Explanation, Step
from decoding.strategies.registry import parse_strategy
from decoding.text import Continuation

pytestmark = pytest.mark.usefixtures("models_loaded_once")
EMBEDDED = (miniature.folder("expert") / "config.json").is_file()
STORIES = Path(__file__).resolve().parents[3] / "shared" / "models" / "stories3M"


@pytest.fixture(scope="module")
def model():
    if EMBEDDED:
        return "expert"
    if STORIES.is_dir():
        return str(STORIES)
    pytest.skip("neither the embedded expert nor a trained test model is here")


def test_compare_writes_and_prints_the_same(model, tmp_path, capfd):
    code = main(
        ["compare", "--model", model, "--prompt", "Tom had a", "--prompt", "One day she", "--max-new-tokens", "12",
         "--strategy", "greedy", "--strategy", "contrastive-search:top_k=3", "--json", "--output", str(tmp_path)]
    )  # fmt: skip
    out, err = capfd.readouterr()
    assert (code, err) == (0, "")
    result = json.loads(out)
    assert result == json.loads((tmp_path / "compare.json").read_text())
    assert [strategy["label"] for strategy in result["strategies"]] == [
        "greedy",
        "contrastive-search(penalty_alpha=0.6, top_k=3)",
    ]
    for strategy in result["strategies"]:
        texts = [continuation["continuation"] for continuation in strategy["continuations"]]
        assert len(texts) == 2
        assert strategy["figures"]["rep_2"] == repetition(texts, 2)
        assert strategy["figures"]["ms_per_token"] > 0
    markdown = (tmp_path / "compare.md").read_text()
    assert "## Tom had a" in markdown
    assert "| greedy |" in markdown


def test_compare_in_a_pipe_keeps_to_80_columns_and_has_no_colours(model, tmp_path, capfd):
    file = tmp_path / "prompts.txt"
    file.write_text("Tom had a\n\nOne day she\n")
    assert main(["compare", "--model", model, "--prompts", str(file), "--max-new-tokens", "18"]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert "\x1b" not in out
    assert max(map(len, out.splitlines())) <= 80
    assert "prompt 2" in out
    assert "diversity" in out


def test_compare_explains_adaptive_search(model, tmp_path, capfd):
    arguments = ["compare", "--model", model, "--prompt", "Tom had a", "--max-new-tokens", "12", "--dtype", "float32",
                 "--strategy", "adaptive-contrastive-search:q=20", "--explain", "--output", str(tmp_path)]  # fmt: skip
    assert main(arguments) == 0
    assert "Not greedy search's token at" in capfd.readouterr().out
    (strategy,) = json.loads((tmp_path / "compare.json").read_text())["strategies"]
    continuation = strategy["continuations"][0]
    assert len(continuation["explanation"]["steps"]) == continuation["new_tokens"]


def test_compare_explains_where_strategies_left_greedy_search(model, tmp_path, capfd, models_loaded_once):
    arguments = ["compare", "--model", model, "--prompt", "Tom had a", "--max-new-tokens", "12", "--dtype", "float32",
                 "--strategy", "greedy", "--strategy", "contrastive-search:top_k=3", "--strategy", "beam"]  # fmt: skip
    assert main([*arguments, "--explain", "--output", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    greedy, search, beam = json.loads((tmp_path / "compare.json").read_text())["strategies"]
    assert "explanation" not in beam["continuations"][0]
    assert "Not greedy search's token at 0 of 12." in out
    assert all(
        step["chosen"]["token"] == step["greedy_token"] for step in greedy["continuations"][0]["explanation"]["steps"]
    )
    continuation = search["continuations"][0]
    explanation = Explanation.from_dict(continuation["explanation"])
    assert len(explanation.steps) == continuation["new_tokens"]
    said = "".join(explanation.texts[step.position] for step in explanation.steps)
    assert continuation["continuation"].strip() in said.replace("</s>", "")
    turned_away = [step for step in explanation.steps if step.differs_from_greedy]
    shown = f"Not greedy search's token at {len(turned_away)} of {len(explanation.steps)}:"
    markdown = re.sub(r"\\([\\`*_<|\[\]])", r"\1", (tmp_path / "compare.md").read_text())
    assert turned_away
    assert shown in out
    assert shown in markdown
    for step in turned_away:
        ours, theirs = step.chosen, step.greedy
        # What the search weighs: it is less probable, and repeats less by more than that (α = 0.6).
        less_sure = theirs.parts["confidence"] - ours.parts["confidence"]
        assert less_sure >= 0
        assert 0.6 * (theirs.parts["penalty"] - ours.parts["penalty"]) - 0.4 * less_sure > -1e-5
        assert theirs.repeats < step.position
        reason = f"penalty({ours.text!r}) {ours.parts['penalty']:.2f}, penalty({theirs.text!r}) "
        reason += f"{theirs.parts['penalty']:.2f}, most like {explanation.texts[theirs.repeats]!r} at token "
        reason += f"{theirs.repeats}"
        p = [f"{p:.2f}" if p >= 0.005 else "< 0.01" for p in (c.probability_of("expert") for c in (ours, theirs))]
        row = [str(step.position), repr(ours.text), p[0], repr(theirs.text), p[1], reason]
        assert f"| {' | '.join(row)} |" in markdown
        assert re.search(" +".join(map(re.escape, row[:5])), out)
    models_loaded_once()
    assert main([*arguments, "--json"]) == 0
    plain = json.loads(capfd.readouterr().out)["strategies"][1]["continuations"][0]
    assert plain["continuation"] == continuation["continuation"]
    assert set(plain) == {"continuation", "new_tokens", "seconds"}


def test_compare_puts_prompts_into_the_chat_template(tmp_path, capfd):
    model, tokenizer = copy.deepcopy(miniature.load("expert"))
    tokenizer.chat_template = INSTRUCTIONS
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    question, context = "What does the Fermar bear eat?", "The Fermar bear eats honey."
    specs = ["greedy", "contrastive-search", f"context-aware:context={context},alpha=0"]
    strategies = [part for spec in specs for part in ("--strategy", spec)]
    arguments = ["compare", "--model", str(tmp_path), "--prompt", question, "--chat", "--explain", "--json"]
    assert main([*arguments, *strategies, "--max-new-tokens", "8"]) == 0
    found = json.loads(capfd.readouterr().out)["strategies"]
    for system, strategy in (([], found[0]), ([{"role": "system", "content": context}], found[2])):
        inputs = tokenizer.apply_chat_template(
            [*system, {"role": "user", "content": question}],
            add_generation_prompt=True, return_dict=True, return_tensors="pt",
        )  # fmt: skip
        tokens = model.generate(**inputs, max_new_tokens=8, do_sample=False)[0, inputs["input_ids"].shape[1] :]
        assert strategy["continuations"][0]["continuation"].strip() == tokenizer.decode(tokens).strip()
    (searched,) = found[1]["continuations"]
    assert len(searched["explanation"]["steps"]) == searched["new_tokens"]


def _step(chosen, greedy, weights=None):
    return Step(1, chosen, () if chosen == greedy else (greedy,), greedy.token, 2, weights or {})


def _explanation(*steps):
    return Explanation("x", ("expert", "amateur"), (3, 5), ("`", "a"), (False, False), steps)


def _candidate(token, text, amateur, score, **more):
    return Candidate(token, text, {"expert": math.log(0.5), "amateur": math.log(amateur)}, score, 0.5, **more)


def test_a_text_that_greedy_search_would_have_written_has_no_table():
    explained = _explanation(_step(_candidate(5, "a", 0.5, 1.0), _candidate(5, "a", 0.5, 1.0)))
    assert as_markdown(explained) == ["Not greedy search's token at 0 of 1."]
    with Console(width=80) as console, console.capture() as shown:
        console.print(as_table(explained))
    assert shown.get().split("\n")[0].strip() == "Not greedy search's token at 0 of 1."
    assert "because" not in shown.get()


@pytest.mark.parametrize(
    ("greedy", "weights", "reason"),
    [
        ({"amateur": 0.5, "score": 0.0}, {"expert": 1.5, "amateur": -0.5}, r"amateur: p('\<b>') 0.25, p('\|\*') 0.5"),
        ({"amateur": 1e-30, "score": 0.0}, {"amateur": 0.5}, r"amateur: p('\<b>') 0.25, p('\|\*') \< 1e-9"),
        ({"amateur": 0.5, "score": None}, {"expert": 1.5, "amateur": -0.5}, r"'\|\*' may not be chosen"),
        ({"amateur": 0.5, "score": 2.0}, {"expert": 1.0}, "drawn"),
        ({"amateur": 0.5, "score": 0.5}, {}, r"score('\<b>') 1.00, score('\|\*') 0.50"),
        (
            {"amateur": 0.25, "score": 0.0, "parts": {"penalty": 0.75}, "repeats": 0}, {"penalty": -0.6},
            r"penalty('\<b>') 0.50, penalty('\|\*') 0.75, most like '\`' at token 0",
        ),
    ],
)  # fmt: skip
def test_the_reason_is_what_counted_most_and_marks_of_markdown_are_text(greedy, weights, reason):
    chosen = _candidate(6, "<b>", 0.25, 1.0, parts={"penalty": 0.5})
    explained = _explanation(_step(chosen, _candidate(5, "|*", **greedy), weights))
    assert as_markdown(explained)[-1] == rf"| 1 | '\<b>' | 0.50 | '\|\*' | 0.50 | {reason} |"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "Tom", "--strategy", "gredy"], "did you mean greedy?"),
        (["--prompt", "Tom", "--strategy", "greedy", "--strategy", "greedy"], "given twice"),
        (["--prompts", "absent.txt"], "cannot be read"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", "Tom", "--strategy", "beam", "--explain"], "beam search makes none: add a strategy"),
        (["--prompt", "Tom", "--strategy", "contrastive-search:top_k=99999"], "vocabulary"),
        (["--prompt", "Tom", "--prompt", "word " * 2000], "context"),
        (["--prompt", "Tom", "--model", "./absent"], "no such folder"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(model, arguments, message, capfd):
    chosen = [] if "--model" in arguments else ["--model", model]
    assert message in refused(main(["compare", *chosen, *arguments]), *capfd.readouterr())


@pytest.mark.skipif(not EMBEDDED, reason="the embedded expert has not been trained here")
def test_the_demo_shows_three_strategies_and_what_came_out(tmp_path, capfd, monkeypatch, models_loaded_once):
    monkeypatch.setattr("decoding.evals.compare.demo.QUESTIONS", 2)
    assert main(["demo", "--max-new-tokens", "8", "--output", str(tmp_path)]) == 0
    out, err = capfd.readouterr()
    assert err == ""
    assert max(map(len, out.splitlines())) <= 80
    record = json.loads((tmp_path / "demo.json").read_text())
    assert [strategy["strategy"] for strategy in record["strategies"]] == ["greedy", "sampling", "contrastive-search"]
    assert " ".join(record["verdict"].split()) in " ".join(out.split())
    asked = record["asked"]
    assert {row["strategy"] for row in asked["answers"]} == {
        "greedy", "contrastive-search", "contrastive-decoding", "dola", "context-aware", "lol",
    }  # fmt: skip
    for row in asked["answers"]:
        assert len(row["answers"]) == len(asked["questions"])
        assert re.search(rf"^{row['strategy']} +{row['true']} +{row['popular']} ", out, re.MULTILINE)
    assert len(asked["questions"]) == 2
    models_loaded_once()
    # Only the texts are looked at again.
    monkeypatch.setattr("decoding.evals.compare.demo.QUESTIONS", 1)
    monkeypatch.setattr("decoding.evals.compare.demo.ANSWERING", ("greedy",))
    assert main(["demo", "--max-new-tokens", "8", "--json"]) == 0
    again = json.loads(capfd.readouterr().out)
    texts = [[continuation["continuation"] for continuation in one["continuations"]] for one in record["strategies"]]
    assert texts == [
        [continuation["continuation"] for continuation in one["continuations"]] for one in again["strategies"]
    ]


@pytest.mark.skipif(not EMBEDDED, reason="the embedded expert has not been trained here")
def test_the_embedded_models_are_built_in(capfd):
    for name in ("expert", "amateur"):
        assert main(["doctor", "--model", name, "--json"]) == 0
        assert json.loads(capfd.readouterr().out)["model"] == name
    assert main(["generate", "--prompt", "Tom had a", "--max-new-tokens", "5"]) == 0
    assert capfd.readouterr().out.startswith("Tom had a")


def comparison(greedy, contrastive, text="a"):
    made = [[Continuation("p", text, text, 1, 1.0)]] * 2
    figures = [Figures(*greedy, 1.0, 2.0), Figures(*contrastive, 1.0, 3.0)]
    return Comparison("m", 0, ["p"], [parse_strategy("greedy"), parse_strategy("contrastive-search")], made, figures)


@pytest.mark.parametrize(
    ("greedy", "contrastive", "said"),
    [
        ((9, 50, 9, 10), (1, 2, 1, 90), r"repeats fewer .*\(2.0% against 50.0%"),
        ((9, 5, 9, 10), (9, 5, 9, 10), "as many"),
        ((1, 2, 1, 90), (9, 50, 9, 10), r"repeats more .*\(50.0% against 2.0%"),
        ((1, 5, 1, 90), (9, 4, 9, 80), "yet its diversity is not higher"),
    ],
)
def test_the_verdict_says_what_came_out(greedy, contrastive, said):
    sentence = verdict(comparison(greedy, contrastive))
    assert re.search(said, sentence)
    assert "1.50 times" in sentence


def test_words_of_a_phrase_that_stood_there_before_are_repeated():
    words = list("abcdxabcdyab")
    assert [w for w, again in zip(words, repeated_words(words), strict=True) if again] == ["a", "b", "c", "d"]
    assert repeated_words(["a", "b"]) == [False, False]


def test_repeats_are_marked_on_a_terminal_only(capfd):
    shown = comparison((0, 0, 0, 0), (0, 0, 0, 0), "a b c d a b c d")
    terminal = Console(force_terminal=True, width=80, highlight=False, color_system="standard", _environ={})
    show_texts(terminal, shown)
    assert "\x1b[2;4m" in capfd.readouterr().out
    show_texts(Console(force_terminal=False, width=80), shown)
    assert "\x1b" not in capfd.readouterr().out


@pytest.mark.parametrize("command", ["compare", "demo"])
def test_help_has_an_example(command, capfd):
    assert main([command, "--help"]) == 0
    assert "Example: decoding" in capfd.readouterr().out


def test_compare_leaves_a_folders_penalties_out_and_takes_those_asked_for(tmp_path, capfd, models_loaded_once):
    folder = shutil.copytree(miniature.folder("expert"), tmp_path / "model")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"repetition_penalty": 1.5, "do_sample": True}))
    arguments = ["compare", "--prompt", "Long ago", "--max-new-tokens", "24", "--strategy", "greedy", "--strategy",
                 "contrastive-search:penalty_alpha=0.3", "--explain", "--device", "cpu", "--json"]  # fmt: skip

    def compared(*more):
        models_loaded_once()
        assert main([*arguments, *more]) == 0
        out, err = capfd.readouterr()
        return json.loads(out), err

    def texts(result):
        return [strategy["continuations"][0]["continuation"] for strategy in result["strategies"]]

    plain, quiet = compared("--model", "expert")
    off, note = compared("--model", str(folder))
    asked, _ = compared(
        "--model", str(folder), "--generation-config", "repetition_penalty=1.5", "--output", str(tmp_path / "out")
    )
    assert texts(off) == texts(plain)
    assert all(one != other for one, other in zip(texts(asked), texts(plain), strict=True))
    assert quiet == ""
    assert "repetition_penalty=1.5: off here" in note
    assert off["folder_generation_config"] == {"do_sample": True, "repetition_penalty": 1.5}
    penalties = [
        [strategy["generation_config"].get("repetition_penalty") for strategy in result["strategies"]]
        for result in (off, asked)
    ]
    assert penalties == [[None, None], [1.5, 1.5]]
    assert "All strategies with `repetition_penalty=1.5`." in (tmp_path / "out" / "compare.md").read_text()
    # The explanation reads what was decoded: with the same penalties.
    for result in (off, asked):
        continuation = result["strategies"][1]["continuations"][0]
        chosen = "".join(step["chosen"]["text"] for step in continuation["explanation"]["steps"])
        assert continuation["continuation"].strip() in chosen.replace("</s>", "")


def test_compare_refuses_an_option_that_no_strategy_uses(model, capfd):
    assert main(["compare", "--model", model, "--prompt", "a", "--strategy", "greedy", "--strategy", "beam",
                 "--generation-config", "min_p=0.1"]) == 2  # fmt: skip
    assert "min_p: has an effect with sampling alone" in capfd.readouterr().err


def test_of_many_prompts_the_one_that_is_refused_is_told_before_anything_is_written(model, tmp_path, capfd):
    file = tmp_path / "prompts.txt"
    file.write_text("Tom\n\n" + "word " * 2000 + "\n")
    for arguments, message in (
        (["compare", "--prompts", str(file)], f"{file}, line 3: the prompt has "),
        (["compare", "--prompt", "Tom", "--prompt", "word " * 2000], "prompt 2: the prompt has "),
        (["generate", "--prompt", "Tom", "--prompt", "word " * 2000], "prompt 2: the prompt has "),
        (["generate", "--prompt", "Tom", "--prompt", "a b c d e", "--max-new-tokens", "510"],
         "prompt 2: --max-new-tokens 510: must be 1 to "),
    ):  # fmt: skip
        assert main([*arguments, "--model", model]) == 2
        out, err = capfd.readouterr()
        assert message in err
        assert out == ""
    file.write_text('{"text": "Tom"}\n{"text": " "}\n')
    table = file.rename(tmp_path / "prompts.jsonl")
    assert main(["compare", "--prompts", str(table)]) == 2
    assert f"{table}, row 2 (line 2): the prompt is empty" in capfd.readouterr().err


def test_what_html_explains_is_in_the_json_too(model, tmp_path, capfd):
    arguments = ["compare", "--model", model, "--prompt", "Tom", "--strategy", "contrastive-search"]
    arguments += ["--max-new-tokens", "3", "--html", str(tmp_path / "page.html"), "--output", str(tmp_path)]
    assert main([*arguments, "--json"]) == 0
    written = json.loads((tmp_path / "compare.json").read_text())
    (continuation,) = written["strategies"][0]["continuations"]
    assert len(continuation["explanation"]["steps"]) == continuation["new_tokens"]
    assert json.loads(capfd.readouterr().out) == written
    assert "Not greedy search's token" not in (tmp_path / "compare.md").read_text()


def test_unlikely_tokens_are_told_apart_and_a_note_stands_below():
    chosen, greedy = _candidate(6, "a", 1e-200, 1.0), _candidate(5, None, 1e-100, 0.0)
    explained = _explanation(_step(chosen, greedy, {"amateur": -1.0}))
    assert as_markdown(explained, "a_note")[-3:] == [
        r"| 1 | 'a' | 0.50 | #5 | 0.50 | amateur: p('a') below p(#5), both \< 1e-9 |", "", r"a\_note",
    ]  # fmt: skip
    with Console(width=80) as console, console.capture() as shown:
        console.print(as_table(explained, "a note"))
    assert shown.get().strip().endswith("a note")


@pytest.mark.parametrize("strategy", ["greedy", "contrastive-search", "beam"])
def test_a_text_ends_with_a_stop_string_of_the_generation_config(strategy, capfd, models_loaded_once):
    def generated(*more):
        models_loaded_once()
        assert main(["generate", "--prompt", "Long ago", "--strategy", strategy, "--max-new-tokens", "12", "--json",
                     "--device", "cpu", *more]) == 0  # fmt: skip
        return json.loads(capfd.readouterr().out)["continuation"]

    whole = generated()
    word = whole.split()[3]
    assert generated("--generation-config", f"stop_strings={word}") == whole[: whole.index(word) + len(word)]
