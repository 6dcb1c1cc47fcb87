"""Likelihoods of whole texts, FACTOR and HaluEval, against one full forward pass a text."""

import csv
import functools
import json
from pathlib import Path

import contrast_oracle as oracle
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from decoding.errors import InputError, OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.runner import run
from decoding.evals.tasks import factor
from decoding.evals.tasks.halueval.data import load as load_halueval
from decoding.evals.tasks.halueval.discrimination import HaluEval
from decoding.evals.tasks.likelihood import likelihoods
from decoding.strategies.registry import parse_strategy

SHARED = Path(__file__).resolve().parents[4] / "shared"
STRATEGIES = ["greedy", "contrastive-decoding:amateur=amateur,alpha=0.05,beta=0.7"]
PREFIX = "Tom the ferryman had always wanted to see the lighthouse. He took his lantern. "
COMPLETIONS = [
    "Before sunrise he went to the river.",
    "Before sunrise he sea the to went.",
    "Violin violin.",
    "He slept.",
]


@functools.cache
def models():
    expert, tokenizer = miniature.load("expert")
    return expert, tokenizer, oracle.Reader(expert), oracle.Reader(miniature.load("amateur")[0])


def ready(*specs):
    expert, tokenizer, _, _ = models()
    return configured([parse_strategy(spec) for spec in specs or STRATEGIES], expert, tokenizer, "expert", task={})


def summed(prompt, text, contrast=False, raw=False):
    """The log-score of a text after a prompt, a token at a time over whole texts in float64, and its length."""
    _, tokenizer, expert, amateur = models()
    before, whole = (tokenizer(string)["input_ids"] for string in (prompt, prompt + text))
    return sum_of_tokens(expert, amateur if contrast else None, before, whole[len(before) :], raw)


def sum_of_tokens(expert, amateur, before, after, raw):
    ids = [*before, *after]
    logits = expert.logits(ids)
    if amateur is None:
        scores = logits.log_softmax(-1)
    else:
        theirs = amateur.logits(ids)
        scores = torch.stack(
            [oracle.contrastive_decoding(*pair, 0.05, 0.7, "logits") for pair in zip(logits, theirs, strict=True)]
        )
        scores = scores if raw else scores - scores.logsumexp(-1, keepdim=True)
    places = torch.arange(len(before) - 1, len(ids) - 1)
    return scores[places, ids[len(before) :]].clamp_min(-1000.0).sum().item(), len(after)


def written_factor(tmp_path, rows, name="news.csv"):
    path = tmp_path / name
    columns = ["", "full_prefix", "doc_id", "completion", "contradiction_0", "contradiction_1", "turncated_prefixes"]
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns)
        writer.writeheader()
        writer.writerows(dict(zip(columns, row, strict=True)) for row in rows)
    return str(path)


def test_likelihoods_are_those_of_one_pass_a_text():
    expert, tokenizer, _, _ = models()
    prompt, texts = PREFIX.rstrip(), [f" {completion}" for completion in COMPLETIONS]
    plain, contrast = likelihoods(ready(), expert, tokenizer, prompt, texts)
    assert plain[1] == contrast[1] == 0
    for text, one, other in zip(texts, plain[0], contrast[0], strict=True):
        total, tokens = summed(prompt, text)
        assert one.tokens == other.tokens == tokens
        # float32 sums of up to 15 tokens against float64
        assert one.normalized == pytest.approx(total, abs=1e-3)
        assert one.raw == one.normalized
        assert other.normalized == pytest.approx(summed(prompt, text, contrast=True)[0], abs=1e-3)
        assert other.raw == pytest.approx(summed(prompt, text, contrast=True, raw=True)[0], abs=1e-3)
        assert one.figures()["/token"] == one.normalized / tokens


@pytest.mark.parametrize("spec", ["greedy", "context-aware:context=From the encyclopaedia."])
def test_a_prompt_past_the_context_loses_its_beginning_but_for_bos(spec):
    expert, tokenizer, reader, _ = models()
    context = expert.config.max_position_embeddings
    prompt = PREFIX * 60
    before = tokenizer(prompt.rstrip())["input_ids"]
    assert len(before) > context
    ((found, cut),) = likelihoods(ready(spec), expert, tokenizer, prompt.rstrip(), [" He slept.", " No"])
    own = len(tokenizer("From the encyclopaedia.", add_special_tokens=False)["input_ids"]) if "context" in spec else 0
    assert found[0].tokens + len(before) - cut + own == context
    if spec == "greedy":
        start = before[:1] if before[0] == tokenizer.bos_token_id else []
        kept = [*start, *before[len(start) + cut :]]
        after = tokenizer(" He slept.", add_special_tokens=False)["input_ids"]
        assert found[0].normalized == pytest.approx(sum_of_tokens(reader, None, kept, after, False)[0], abs=1e-3)


def test_a_text_past_the_context_is_named():
    expert, tokenizer, _, _ = models()
    with pytest.raises(InputError, match=r"the text 'word word .*…' has \d+ tokens: too long for a context of"):
        likelihoods(ready(), expert, tokenizer, "Tom", [" word" * 2000])


def test_a_strategy_that_ranks_candidates_cannot_score():
    expert, tokenizer, _, _ = models()
    for spec in ("contrastive-search", "sampling"):
        with pytest.raises(OptionError, match=spec):
            likelihoods(ready(spec), expert, tokenizer, "Tom", [" slept"])


def test_a_space_at_the_end_of_a_prefix_goes_to_the_completions():
    document = factor.Completions("1", "Once. ", "Then", (" Never",))
    assert document.prompt_and_texts == ("Once.", [" Then", " Never"])
    document = factor.Completions("1", "Once.\n", "Then", (" Never",))
    assert document.prompt_and_texts == ("Once.\n", ["Then", "Never"])


def test_factor_accuracy_is_that_of_one_pass_a_completion(tmp_path):
    expert, tokenizer, _, _ = models()
    rows = [["0", PREFIX, "0", *COMPLETIONS[i:], *COMPLETIONS[:i], PREFIX] for i in range(4)]
    path = written_factor(tmp_path, [[*row[:6], row[-1]] for row in rows])
    completions, bad = factor.load(path)
    assert (len(completions), bad) == (4, [])
    task = factor.Factor(expert, tokenizer, completions)
    results = run(task, ready())
    for entry, contrast in zip(results["configurations"], (False, True), strict=True):
        for name in factor.METRICS:
            raw, mean = "raw" in name, "/token" in name
            right = 0
            for row in rows:
                scores = [summed(PREFIX.rstrip(), f" {completion}", contrast, raw) for completion in row[3:6]]
                true, *false = [total / tokens if mean else total for total, tokens in scores]
                right += all(true >= score for score in false)
            assert entry["metrics"][name]["value"] == right / len(rows)


def test_factor_reads_the_prefixes_of_its_kind(tmp_path):
    row = ["0", "Full.", "0", "a", "b", "c", "Cut."]
    for name, prefix, expected in (
        ("news.csv", None, "Full."),
        ("wiki.csv", None, "Cut."),
        ("wiki.csv", "full", "Full."),
        ("news.csv", "truncated", "Cut."),
    ):
        (document,), _ = factor.load(written_factor(tmp_path, [row], name), prefix)
        assert (document.prefix, document.contradictions) == (expected, ("b", "c"))
    with pytest.raises(OptionError, match="prefix='half': must be full or truncated"):
        factor.load(written_factor(tmp_path, [row]), "half")


def written_halueval(tmp_path, rows):
    path = tmp_path / "data.json"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return str(path)


QA = [
    {"knowledge": "Tom is a ferryman.", "question": "What is Tom?", "right_answer": "A ferryman.",
     "hallucinated_answer": "Tom is a musician who lives by the sea."},
    {"knowledge": "It rained.", "question": "Did it rain?", "right_answer": "Zxq", "hallucinated_answer": "Yes."},
]  # fmt: skip
GENERAL = [
    {"ID": "1", "user_query": "What is Tom?", "chatgpt_response": "A ferryman.", "hallucination": "no"},
    {"ID": "1", "user_query": "Did it rain?", "chatgpt_response": "Zxq", "hallucination": "yes"},
    {"ID": "3", "user_query": "Did it rain?", "chatgpt_response": "It did.", "hallucination": "No"},
]


@pytest.mark.parametrize("knowledge", [True, False])
def test_halueval_pairs_are_told_apart_as_by_one_pass_a_text(tmp_path, knowledge):
    expert, tokenizer, _, _ = models()
    responses, _ = load_halueval(written_halueval(tmp_path, QA))
    task = HaluEval(expert, tokenizer, responses, knowledge=knowledge)
    (entry,) = run(task, ready("greedy"))["configurations"]
    scores = []
    for row in QA:
        prompt = f"Knowledge: {row['knowledge']}\n" * knowledge + f"Question: {row['question']}\nAnswer:"
        scores.append([summed(prompt, f" {row[name]}") for name in ("right_answer", "hallucinated_answer")])
    for way, value in (("", lambda total, tokens: total), ("/token", lambda total, tokens: total / tokens)):
        pairs = [[value(*score) for score in pair] for pair in scores]
        assert entry["metrics"][f"acc{way}"]["value"] == sum(one > other for one, other in pairs) / 2
        ordered = [one > other for one, _ in pairs for _, other in pairs]
        assert entry["metrics"][f"AUC{way}"]["value"] == sum(ordered) / 4


def test_halueval_general_responses_are_ranked_all_together(tmp_path):
    expert, tokenizer, _, _ = models()
    responses, _ = load_halueval(written_halueval(tmp_path, GENERAL))
    assert [(response.id, len(response.right)) for response in responses] == [("1", 1), ("2", 0), ("3", 1)]
    task = HaluEval(expert, tokenizer, responses)
    assert not task.paired
    results = run(task, ready("greedy"))
    (entry,) = results["configurations"]
    totals = [summed(f"Question: {row['user_query']}\nAnswer:", f" {row['chatgpt_response']}")[0] for row in GENERAL]
    assert entry["metrics"]["AUC"]["value"] == ((totals[0] > totals[1]) + (totals[2] > totals[1])) / 2
    assert {"AUC", "AUC/token", "AUC raw", "AUC/token raw", "cut"} == set(entry["metrics"])


@pytest.mark.parametrize(
    ("load", "content", "message"),
    [
        (factor.load, "full_prefix,completion\nx,y\n", "row 1 (line 2), column contradiction_0: is missing"),
        (factor.load, "full_prefix,completion,contradiction_0\nx,,z\n", "row 1 (line 2), column completion: is empty"),
        (load_halueval, json.dumps({**QA[0], "right_answer": " "}), "row 1 (line 1), column right_answer: is empty"),
        (load_halueval, json.dumps({"question": "?"}), "column right_answer: is missing; the row has question"),
        (load_halueval, json.dumps({**GENERAL[0], "hallucination": "maybe"}), "is 'maybe'; must be yes or no"),
    ],
)  # fmt: skip
def test_bad_rows_are_named(tmp_path, load, content, message):
    path = tmp_path / "news.csv"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(InputError) as raised:
        load(str(path))
    assert message in str(raised.value)
    assert str(raised.value).startswith(f"{path}, row 1")


def test_the_commands_end_in_a_table_and_files(tmp_path, capfd):
    news = written_factor(tmp_path, [["0", PREFIX * 60, "0", *COMPLETIONS[:3], ""], ["1", "", "0", "a", "b", "c", ""]])
    out = tmp_path / "out"
    arguments = ["eval", "factor", "--data", news, "--output", str(out)]
    assert main(arguments) == 2
    assert "row 2" in capfd.readouterr().err
    assert main([*arguments, "--skip-bad"]) == 0
    shown, noted = capfd.readouterr()
    assert "1 document, 1 more left out" in shown
    assert "greedy: 1 of 1 prompts were too long for the model's context and lost their beginning" in noted
    (sample,) = map(json.loads, (out / "samples_factor.jsonl").read_text().splitlines())
    assert sample["cut_tokens"] > 0
    general = written_halueval(tmp_path, GENERAL)
    assert main(["eval", "halueval", "--data", general, "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["counts"]["evaluated"] == 3
    assert main(["eval", "halueval", "--data", general, "--limit", "1"]) == 2
    assert "none of the 1 documents has a hallucinated text" in capfd.readouterr().err


def test_the_published_files_are_read_and_scored():
    if not SHARED.is_dir():
        pytest.skip("the published data and the trained models lie outside the repository and are not here")
    folder = SHARED / "models" / "stories3M"
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    completions, bad = factor.load(str(SHARED / "data/factor/news_factor.csv"))
    assert (len(completions), bad) == (1036, [])
    responses, bad = load_halueval(str(SHARED / "data/halueval/qa_one-turn_data.json"))
    assert (len(responses), bad) == (500, [])
    general, bad = load_halueval(str(SHARED / "data/halueval/general_data.json"))
    assert (len(general), bad) == (4507, [])
    assert sum(bool(response.hallucinated) for response in general) == 815
    reader = oracle.Reader(model)
    asked = [completion.prompt_and_texts for completion in completions if len(completion.prefix) < 400][:1]
    asked += [
        (response.prompt(True), [f" {response.right[0]}", f" {response.hallucinated[0]}"]) for response in responses[:1]
    ]
    (greedy,) = configured([parse_strategy("greedy")], model, tokenizer, "stories3M", task={})
    for prompt, texts in asked:
        ((found, cut),) = likelihoods([greedy], model, tokenizer, prompt, texts)
        assert cut == 0
        for text, one in zip(texts, found, strict=True):
            before, whole = (tokenizer(string)["input_ids"] for string in (prompt, prompt + text))
            total, tokens = sum_of_tokens(reader, None, before, whole[len(before) :], False)
            assert (one.normalized, one.tokens) == (pytest.approx(total, abs=2e-3), tokens)
