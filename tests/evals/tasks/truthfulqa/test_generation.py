"""TruthfulQA with generated answers: rows on their own, where answers end, draws, judges, and runs that go on."""

import copy
import dataclasses
import functools
import json

import pytest
import torch
from chat_tokenizers import INSTRUCTIONS
from command_results import refused
from tiny_models import tiny_model

from decoding.errors import InputError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.evals.engine.configurations import configured
from decoding.evals.engine.runner import run
from decoding.evals.engine.text_generation import generate_texts
from decoding.evals.tasks.truthfulqa.data import Question, Targets
from decoding.evals.tasks.truthfulqa.generation import Generation
from decoding.evals.tasks.truthfulqa.judge import Judge
from decoding.evals.tasks.truthfulqa.prompts import prompt_of
from decoding.evals.tasks.truthfulqa.shared_prompt import SharedPrompt
from decoding.strategies.registry import parse_strategy

pytest.importorskip("sacrebleu")
pytest.importorskip("rouge_score")

TURNS = "{% for m in messages %}{{ m.content }}\n{% endfor %}"


@functools.cache
def expert():
    return miniature.load("expert")


@functools.cache
def questions(count=5):
    return [
        Question(
            question.id, question.question, question.best_answer, question.correct_answers, question.incorrect_answers,
            Targets((question.best_answer,), question.incorrect_answers),
            Targets(question.correct_answers, question.incorrect_answers),
        )
        for question in miniature.questions("validation")[:count]
    ]  # fmt: skip


def made(*specs, seed=0, max_new_tokens=8, **options):
    model, tokenizer = expert()
    task = Generation(model, tokenizer, questions(), prompt_of("none"), max_new_tokens=max_new_tokens, **options)
    choices = [parse_strategy(spec) for spec in specs]
    return task, configured(choices, model, tokenizer, "expert", task={"prompt": "none"}, seed=seed)


def stripped(texts):
    return [text.text.strip() for text in texts]


def answers(task, configurations, documents=None):
    records = task.evaluate_group(documents or task.documents(), configurations)
    return [[record["answer"] for record in row] for row in records]


@torch.no_grad()
def test_a_greedy_answer_is_what_the_model_goes_on_with_up_to_the_next_question():
    model, tokenizer = expert()
    task, configurations = made("greedy", max_new_tokens=12)
    for question, (answer,) in zip(questions(3), answers(task, configurations, task.documents()[:3]), strict=True):
        ids = tokenizer(f"Q: {question.question}\nA:", return_tensors="pt")["input_ids"]
        text = []
        for _ in range(12):
            logits = model(torch.cat([ids, torch.tensor([text], dtype=torch.long)], 1), use_cache=False).logits
            text.append(int(logits[0, -1].argmax()))
            if text[-1] == model.generation_config.eos_token_id:
                break
        whole = tokenizer.decode(text, skip_special_tokens=True)
        assert answer == whole.partition("Q:")[0].partition("\n\n")[0].strip()


def test_answers_do_not_depend_on_the_batch():
    specs = ("greedy", "contrastive-search:penalty_alpha=0.3", "dola", "sampling:temperature=1.5", "beam")
    task, configurations = made(*specs, max_new_tokens=5)
    documents = task.documents()[:2]
    together = answers(task, configurations, documents)
    alone = [answers(task, configurations, [document])[0] for document in documents]
    assert together == alone
    assert len({row[3] for row in together}) > 1


def test_draws_follow_the_seed_and_the_question():
    first, again, other = (answers(*made("sampling:temperature=1.5", seed=seed)) for seed in (1, 1, 2))
    assert first == again != other


def test_an_answer_ends_before_the_first_stop():
    model, tokenizer = expert()
    greedy = parse_strategy("greedy")
    prompt = tokenizer(f"Q: {questions()[0].question}\nA:")["input_ids"]
    whole = stripped(generate_texts(greedy, model, tokenizer, [prompt], [0], max_new_tokens=12))[0]
    word = whole.split()[2]
    stop = ("never there", word)
    cut = stripped(generate_texts(greedy, model, tokenizer, [prompt], [0], max_new_tokens=12, stop=stop))[0]
    assert cut == whole[: whole.index(word)].strip()
    assert cut


def test_an_encoder_decoder_writes_behind_its_start_token():
    class Numbers:
        pad_token_id, eos_token_id = 0, 2

        def decode(self, tokens, skip_special_tokens):
            return " ".join(str(int(token)) for token in tokens if token > 2)

    model = tiny_model("t5")
    greedy = parse_strategy("greedy")
    texts = stripped(generate_texts(greedy, model, Numbers(), [[5, 6, 7], [8, 9]], [0, 0], max_new_tokens=6))
    for prompt, text in zip([[5, 6, 7], [8, 9]], texts, strict=True):
        alone = model.generate(torch.tensor([prompt]), max_new_tokens=6, do_sample=False)[0, 1:]
        assert text == Numbers().decode(alone, True)


PROMPTS = [[1, *range(5, 25), *rest] for rest in ([30], [31, 32, 33, 34, 35], [36, 37])]


# Every form of positions goes on greedily; the other kinds of strategies go on from one or two of them.
@pytest.mark.parametrize(
    ("kind", "spec"),
    [
        *((kind, "greedy") for kind in ("llama", "gpt2", "opt", "bloom", "mistral-sliding", "mamba")),
        ("llama", "dola:layers=1"), ("bloom", "dola:layers=1"), ("gpt2", "nucleus"), ("llama", "contrastive-search"),
    ],
)  # fmt: skip
def test_going_on_from_a_shared_prompt_changes_no_answer(kind, spec):
    class Numbers:
        pad_token_id, eos_token_id = 0, 2

        def decode(self, tokens, skip_special_tokens):
            return " ".join(str(int(token)) for token in tokens)

    model = tiny_model(kind)
    choice = parse_strategy(spec)
    shared = SharedPrompt(model, PROMPTS[0][:-1])
    if spec == "contrastive-search" or kind in ("mistral-sliding", "mamba"):
        assert not shared.serves(choice, model)
        return
    assert shared.serves(choice, model)
    lengths = []
    model.get_input_embeddings().register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))

    def written(shared):
        lengths.clear()
        cache = None if shared is None else shared.cache
        return generate_texts(choice, model, Numbers(), PROMPTS, [0, 1, 2], max_new_tokens=8, prefix_cache=cache)

    found = written(shared)
    assert max(lengths) < 10  # the longest question's own 5 tokens, and what DoLa tries a model with
    assert written(None) == found
    assert max(lengths) == 26


@pytest.mark.parametrize("spec", ["greedy", "contrastive-decoding:amateur=amateur"])
def test_the_few_shot_prompt_is_read_once(spec, monkeypatch):
    model, tokenizer = expert()
    options = {"max_new_tokens": 8, "batch_size": 2}
    task = Generation(model, tokenizer, questions(), prompt_of("lm-eval"), **options)
    configurations = configured([parse_strategy(spec)], model, tokenizer, "expert", task={})
    lengths = []
    handle = model.get_input_embeddings().register_forward_pre_hook(lambda _, given: lengths.append(given[0].shape[1]))
    try:
        found = [answers(task, configurations, task.documents()[start : start + 2]) for start in (0, 2)]
    finally:
        handle.remove()
    assert sum(length > 200 for length in lengths) == 1
    monkeypatch.setattr(SharedPrompt, "serves", lambda *_: False)
    assert [answers(task, configurations, task.documents()[start : start + 2]) for start in (0, 2)] == found


def test_a_chat_is_asked_with_the_templates_own_special_tokens():
    model, tokenizer = expert()
    tokenizer = type(tokenizer).from_pretrained(miniature.folder("expert"))
    tokenizer.chat_template = "{{ bos_token }}" + TURNS
    prompt = prompt_of("chat", tokenizer)
    task = Generation(model, tokenizer, questions(), prompt, max_new_tokens=5)
    ids = task._encoded(questions()[0])
    assert ids.count(tokenizer.bos_token_id) == 1
    assert tokenizer.decode(ids[1:]).strip() == prompt.text(questions()[0].question).removeprefix("<s>").strip()
    assert all(answers(task, made("greedy")[1]))


def test_the_context_of_a_chat_is_its_system_message():
    """Without a contrast (alpha=0) answers are the model's own after chats with the context."""
    model, tokenizer = copy.deepcopy(expert())
    tokenizer.chat_template = INSTRUCTIONS
    prompt = prompt_of("chat", tokenizer)
    context, begin = "Answer with what is true only.", f"{tokenizer.bos_token}[INST] "
    prefix = f"{begin}<<SYS>>\n{context}\n<</SYS>>\n\n{prompt.prefix.removeprefix(begin)}"
    found = []
    for form, spec in (
        (prompt, f"context-aware:context={context},alpha=0"),
        (dataclasses.replace(prompt, prefix=prefix), "greedy"),
        (prompt, "greedy"),
    ):
        task = Generation(model, tokenizer, questions(2), form, max_new_tokens=6)
        found.append(answers(task, configured([parse_strategy(spec)], model, tokenizer, "expert", task={})))
    assert found[0] == found[1] != found[2]


def test_a_prompt_without_room_for_an_answer_is_named():
    model, tokenizer = expert()
    _, configurations = made("greedy")
    task = Generation(model, tokenizer, questions(), prompt_of("none"), max_new_tokens=505)
    with pytest.raises(InputError, match=r"truthfulqa_generation, document .*: its prompt has \d+ tokens"):
        run(task, configurations)


def test_a_judge_gives_the_probability_of_yes():
    model, tokenizer = expert()
    judge = Judge("truth", model, tokenizer)
    asked = tokenizer("Q: Why?\nA: So.\nTrue:")["input_ids"]
    yes = tokenizer(" yes", add_special_tokens=False)["input_ids"]
    with torch.no_grad():
        logits = model.double()(torch.tensor([asked + yes]), use_cache=False).logits[0, len(asked) - 1 : -1]
        model.float()
    expected = logits.softmax(-1)[range(len(yes)), yes].prod().item()
    assert judge.probability("Why?", "So.") == pytest.approx(expected, rel=1e-4)


def test_verdicts_are_figures_and_their_product_one_more():
    class Fixed(Judge):
        def probability(self, question, answer):
            return {"truth": 0.5, "info": 0.4}[self.asks]

    model, tokenizer = expert()
    task, configurations = made("greedy", judges=[Fixed("truth", model, tokenizer), Fixed("info", model, tokenizer)])
    (record,) = task.evaluate(task.documents()[0], configurations)
    assert {name: record["metrics"][name] for name in ("truth", "info", "truth_info")} == {
        "truth": 1, "info": 0, "truth_info": 0,
    }  # fmt: skip
    assert record["judged"] == {"truth": 0.5, "info": 0.4}
    assert set(task.settings["judges"]) == {"truth", "info"}
    assert {"fingerprint", "config", "tokenizer", "dtype"} <= task.settings["judges"]["info"].keys()


def test_a_run_that_goes_on_ends_as_one_undisturbed(tmp_path):
    task, configurations = made("greedy", "sampling", batch_size=3)
    whole = run(task, configurations, output=tmp_path / "whole")
    lines = (tmp_path / "whole" / "samples_truthfulqa_generation.jsonl").read_text().splitlines()
    assert len(lines) == 2 * len(questions())
    (tmp_path / "cut").mkdir()
    # Killed in the middle of the second group.
    (tmp_path / "cut" / "samples_truthfulqa_generation.jsonl").write_text("\n".join(lines[:7]) + "\n")
    resumed = run(task, configurations, output=tmp_path / "cut")
    assert {**resumed, "times": None} == {**whole, "times": None}
    found = (tmp_path / "cut" / "samples_truthfulqa_generation.jsonl").read_text().splitlines()
    assert sorted(map(json.dumps, map(json.loads, found))) == sorted(map(json.dumps, map(json.loads, lines)))


def test_the_command_writes_answers_and_asks_judges(tmp_path, capfd):
    arguments = ["eval", "truthfulqa", "--generation", "--miniature", "--limit", "3", "--max-new-tokens", "12"]
    assert main([*arguments, "--strategy", "greedy", "--judge-truth", "expert", "--output", str(tmp_path)]) == 0
    header = capfd.readouterr().out.splitlines()[0].split()
    assert header == ["truth", "bleu_acc", "rougeL_acc"]
    path = tmp_path / "samples_truthfulqa_generation_miniature.jsonl"
    samples = list(map(json.loads, path.read_text(encoding="utf-8").splitlines()))
    assert len(samples) == 3
    assert all(set(sample["judged"]) == {"truth"} and sample["answer"] for sample in samples)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--miniature", "--judge-truth", "expert"], "give --generation as well"),
        (["--generation", "--data", "absent.csv"], "absent.csv: there is no such file"),
    ],
)
def test_bad_options_are_one_line_and_exit_code_2(arguments, message, capfd):
    assert message in refused(main(["eval", "truthfulqa", *arguments]), *capfd.readouterr())
