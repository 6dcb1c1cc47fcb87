"""The model class ``decoding`` of lm-eval: what it scores and generates is what the library scores and generates."""

from __future__ import annotations

import copy
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from chat_tokenizers import INSTRUCTIONS
from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

import decoding
from decoding import LOL, ContrastiveSearch, ModelError, OptionError
from decoding.evals import miniature
from decoding.evals.harness.model import DecodingLM
from decoding.models.loading import save
from decoding.models.releases import RELEASES, folder_of
from decoding.strategies.lol_guidance import GUIDANCE
from decoding.strategies.registry import parse_strategy

PAIRS = [
    ("Q: What does the Fermar bear eat?\nA:", " The Fermar bear eats honey."),
    ("Q: What does the Fermar bear eat?\nA:", " Ants."),
    ("Long ago", " a stubborn gardener called Silas walked through the snow"),
]
NEW = 8  # tokens at most of a text
PROMPTS = ["Q: What does the Fermar bear eat?\nA:", "Q: What is the Rosond mouse afraid of?\nA:", "The town"]
LOL_ARGUMENTS = {"strategy": "lol", "amateur": "induced", "lower_layers": "0.5;0.75", "guidance": "default"}


@pytest.fixture(scope="module", autouse=True)
def models_of_lm_eval_loaded_once() -> Iterator[None]:
    """Have lm-eval load a model once in each way: to load and to check one takes longer than most tests.

    What a test changes of a model it must undo.
    """
    create: Any = HFLM._create_model
    known: dict[str, Any] = {}

    def kept(self: Any, **options: Any) -> None:
        key = repr(options)
        if key not in known:
            create(self, **options)
            known[key] = self._model
        self._model = known[key]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(HFLM, "_create_model", kept)
        yield


def _lm(**arguments: Any) -> DecodingLM:
    return DecodingLM(**{"dtype": "float32", "device": "cpu", "batch_size": 3} | arguments)


def _loglikelihoods(lm: Any, pairs: list[tuple[str, str]] = PAIRS) -> list[tuple[float, bool]]:
    requests = [Instance("loglikelihood", {}, pair, index) for index, pair in enumerate(pairs)]
    return lm.loglikelihood(requests, disable_tqdm=True)


def _texts(lm: Any, prompts: list[str] = PROMPTS, **options: Any) -> list[str]:
    options = {"until": ["\n"], "max_gen_toks": NEW, "do_sample": False} | options
    return lm.generate_until(
        [Instance("generate_until", {}, (prompt, options), index) for index, prompt in enumerate(prompts)],
        disable_tqdm=True,
    )


SCORING = {
    "lol": LOL_ARGUMENTS,
    "cd": {"strategy": "contrastive-decoding:amateur=amateur", "alpha": 0.02},
    "dola": {"strategy": "dola", "layers": [1, 2]},
}


@functools.cache
def _scored(name: str) -> tuple[list[tuple[str, str]], list[str], list[float], float]:
    """Pairs, what a strategy says after each prompt, its scores of each answer, and their sum with a floor."""
    lm = _lm(**SCORING[name])
    assert lm.spec is not None
    said = _texts(lm, [prompt for prompt, _ in PAIRS], max_gen_toks=20)
    pairs = [*PAIRS, (PAIRS[0][0], said[0])]
    scores = [
        decoding.score(lm.model, prompt, [answer], lm.spec.strategy, tokenizer=lm.tokenizer)[0].sum().item()
        for prompt, answer in pairs
    ]
    low = _loglikelihoods(_lm(**SCORING[name], floor=-50))
    return pairs, [*said, said[0]], scores, sum(value for value, _ in low)


@pytest.mark.parametrize(("name", "batch_size"), [("lol", 3), ("cd", 3), ("dola", 3), ("dola", 1)])
def test_log_likelihoods_are_those_of_decoding_score(name: str, batch_size: int) -> None:
    pairs, said, scores, low = _scored(name)
    found = _loglikelihoods(_lm(**SCORING[name], batch_size=batch_size), pairs)
    for (_, answer), text, score, (value, greedy) in zip(pairs, said, scores, found, strict=True):
        assert value == pytest.approx(score, abs=1e-3)  # float32 sums in another order
        assert greedy == text.startswith(answer)
    assert low > sum(value for value, _ in found[: len(PAIRS)])


def test_without_a_strategy_it_is_hf() -> None:
    folder = str(miniature.folder("expert"))
    hf = HFLM(folder, dtype="float32", device="cpu", batch_size=3)
    for lm in (_lm(), _lm(strategy="greedy")):
        assert _loglikelihoods(lm) == _loglikelihoods(hf)
        assert _texts(lm) == _texts(hf)


@pytest.mark.parametrize(
    "arguments",
    [LOL_ARGUMENTS, {"strategy": "contrastive-search", "penalty_alpha": 0.4, "top_k": 4}],
    ids=["lol", "contrastive search"],
)
def test_it_generates_a_batch_as_decoding_generate_does_each_prompt(arguments: dict[str, Any]) -> None:
    lm = _lm(**arguments)
    assert lm.spec is not None
    texts = _texts(lm)
    for prompt, text in zip(PROMPTS, texts, strict=True):
        inputs = lm.tokenizer(prompt, return_tensors="pt")
        alone = decoding.generate(lm.model, **inputs, strategy=lm.spec.strategy, max_new_tokens=NEW)
        new = lm.tokenizer.decode(alone[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
        assert text == new.split("\n")[0]
        assert text


def test_the_context_of_a_chat_is_its_system_message() -> None:
    """Without a contrast (alpha=0) scores and texts are the model's own after a chat with the context."""
    context = "The Fermar bear eats honey."
    aware, plain = _lm(strategy=f"context-aware:context={context},alpha=0"), _lm()
    question = {"role": "user", "content": "What does the Fermar bear eat?"}
    for lm in (aware, plain):
        lm.tokenizer.chat_template = INSTRUCTIONS
    prompt = aware.apply_chat_template([question])
    with_context = plain.apply_chat_template([{"role": "system", "content": context}, question])
    answers = ["The bear eats honey.", "Ants."]
    found = _loglikelihoods(aware, [(prompt, answer) for answer in answers])
    right = _loglikelihoods(plain, [(with_context, answer) for answer in answers])
    for (value, greedy), (own, own_greedy) in zip(found, right, strict=True):
        assert value == pytest.approx(own, abs=1e-3)  # float32 sums in another order
        assert greedy == own_greedy
    assert _texts(aware, [prompt]) == _texts(plain, [with_context]) != _texts(plain, [prompt])


def test_a_model_split_over_devices_says_the_same() -> None:
    pytest.importorskip("accelerate")
    arguments = {"strategy": "dola", "layers": [1, 2]}
    whole, parts = _lm(**arguments), _lm(**arguments, device_map="auto", device="cuda")  # lm-eval's own default
    assert _texts(parts) == _texts(whole)
    assert _loglikelihoods(parts) == _loglikelihoods(whole)


def test_a_stop_string_ends_generation() -> None:
    lm = _lm(strategy=ContrastiveSearch(penalty_alpha=0.4, top_k=4))
    steps: list[int] = []
    handle = lm.model.get_decoder().register_forward_hook(lambda *_: steps.append(1))
    (text,) = _texts(lm, PROMPTS[:1], until=[" bear"], max_gen_toks=100)
    handle.remove()
    assert text == " The Fermar"
    assert len(steps) < 20


def test_baselines_choose_as_they_say_whatever_the_task_would_have() -> None:
    beam = _texts(_lm(strategy="beam", num_beams=3), PROMPTS[:1], temperature=0.0)
    lm = _lm()
    inputs = lm.tokenizer(PROMPTS[0], return_tensors="pt")
    right = lm.model.generate(**inputs, num_beams=3, do_sample=False, max_new_tokens=NEW)
    new = lm.tokenizer.decode(right[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert beam == [new.split("\n")[0]]
    sampling = _lm(strategy="sampling", temperature=3.0, top_p=1.0)
    drawn = {_texts(sampling, PROMPTS[:1])[0] for _ in range(3)}
    assert len(drawn) > 1


@pytest.mark.parametrize("strategy", ["contrastive-search", "sampling"])
def test_what_gives_no_score_is_refused_where_log_likelihoods_are_asked_for(strategy: str) -> None:
    with pytest.raises(OptionError, match=f"strategy={strategy}: it gives no score .* must be contrastive-decoding"):
        _loglikelihoods(_lm(strategy=strategy))


def test_a_batch_size_is_found_for_a_strategy_that_only_generates() -> None:
    lm = _lm(strategy="contrastive-search", batch_size="auto", max_batch_size=2, max_length=64)  # it tries full rows
    assert _texts(lm) == _texts(_lm(strategy="contrastive-search"))


def test_texts_have_room_behind_what_a_reader_reads_before_them() -> None:
    lm = _lm(**LOL_ARGUMENTS)
    guidance = lm.tokenizer(GUIDANCE["en"], add_special_tokens=False)["input_ids"]
    assert lm.max_length == lm.model.config.max_position_embeddings - len(guidance)
    long = "The town lies by the sea. " * 100
    ((value, _),) = _loglikelihoods(lm, [(long, " The harbour is old.")])
    (rolling,) = lm.loglikelihood_rolling([Instance("loglikelihood_rolling", {}, (long,), 0)], disable_tqdm=True)
    assert rolling < value < 0


def test_arguments_reach_the_strategy_or_the_model_in_every_form_that_lm_eval_hands_them_over() -> None:
    right = parse_strategy("lol:amateur=amateur,lower_layers=0.5,3,guidance=none,final_norm=false,alpha=0.2").strategy
    for arguments in (
        {"lower_layers": "0.5;3", "guidance": None, "final_norm": False, "alpha": 0.2},
        {"lower_layers": [0.5, 3], "guidance": "none", "final_norm": "false", "alpha": "0.2"},
    ):
        lm = _lm(strategy="lol", amateur="amateur", **arguments, attn_implementation="eager")
        assert lm.spec is not None
        assert lm.spec.strategy == right
        assert lm.model.config._attn_implementation == "eager"
        assert lm.get_model_info()["strategy"] == lm.spec.label
    assert _lm().get_model_info()["strategy"] is None


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"strategy": "lool"}, "unknown strategy 'lool'; did you mean lol"),
        ({"strategy": "lol", "amatuer": "induced", "lower_layers": "0.5"}, "no parameter 'amatuer'; did you mean"),
        ({"strategy": "lol", "amateur": "induced"}, "lol needs lower_layers"),
        ({"strategy": "lol", "amateur": "induced", "lower_layers": "9"}, "layer 9.* has 4 layers"),
        ({"strategy": "contrastive-search", "penalty_alpha": 2}, "penalty_alpha=2.0: must be a number from 0 to 1"),
        ({"strategy": "contrastive-decoding", "amateur": "absent"}, "absent: there is no folder of this name"),
        ({"pretrained": "/absent"}, "pretrained=/absent: lm-eval cannot load it"),
        ({"device_map": "gpu"}, "device_map='gpu'; expected one of auto, balanced"),
        ({"dtype": "float31"}, "models/expert: lm-eval cannot load it .*float31"),
    ],
)
def test_a_mistake_is_one_line_that_says_what_is_accepted(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises((OptionError, ModelError), match=message) as caught:
        _lm(**arguments)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("kind", ["file", "fetched"])
def test_a_gguf_file_and_a_fetched_model_are_those_of_decoding_load(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("gguf")
    from tiny_gguf import TEXT, tiny_llama, tokenizer_of_digits, write_llama

    tokenizer = tokenizer_of_digits()
    name = str(tmp_path / "tiny.gguf")
    write_llama(Path(name), tiny_llama(len(tokenizer)), tokenizer, **{"tokenizer.ggml.add_bos_token": True})
    if kind == "fetched":
        monkeypatch.setenv("DECODING_CACHE", str(tmp_path))
        monkeypatch.setitem(RELEASES, "tiny", RELEASES["smollm2-135m"])
        save(*decoding.load(name), folder_of("tiny"))
        name = "tiny"
    lm = DecodingLM(name, device="cpu", dtype="float32")
    model, of_file = decoding.load(name)
    assert lm.tok_encode(TEXT[0], add_special_tokens=True) == of_file(TEXT[0])["input_ids"]
    ids = of_file(TEXT[0], return_tensors="pt")["input_ids"]
    assert torch.equal(lm.model(ids).logits, model(ids).logits)


def test_a_strategy_itself_may_be_given() -> None:
    amateur, _ = miniature.load("amateur")
    lm = _lm(strategy=LOL(amateur, [1], guidance="Be right."))
    assert _loglikelihoods(lm) == _loglikelihoods(
        _lm(strategy="lol", amateur="amateur", lower_layers=[1], guidance="Be right.")
    )


@pytest.mark.parametrize("strategy", ["greedy", "contrastive-search"])  # what transformers decodes, and what we do
def test_a_folders_penalties_act_without_a_strategy_alone_and_a_tasks_always(
    strategy: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    lm, own = _lm(strategy=strategy), _lm()
    plain, own_plain = _texts(lm), _texts(own)
    assert lm.model is own.model
    monkeypatch.setattr(lm.model.generation_config, "repetition_penalty", 3.0)
    assert _texts(lm) == plain
    assert _texts(lm, repetition_penalty=3.0) != plain
    info = lm.get_model_info()
    assert info["folder_generation_config"] == {"repetition_penalty": 3.0}
    assert "repetition_penalty" not in info["generation_config"]
    assert _texts(own) != own_plain


def test_a_cache_of_answers_serves_the_configuration_that_made_them_alone(tmp_path: Path) -> None:
    pytest.importorskip("sqlitedict")
    from lm_eval.api.model import CachingLM

    file = str(tmp_path / "answers.db")
    requests = [Instance("generate_until", {}, (PROMPTS[0], {"until": ["\n"], "max_gen_toks": 12}), 0)]
    first = CachingLM(_lm(strategy="greedy"), file).generate_until(requests)
    again = _lm(strategy="greedy")
    again._model_generate = None  # type: ignore[assignment, method-assign] - it is not asked
    assert CachingLM(again, file).generate_until(requests) == first
    changed = _lm(strategy="greedy")
    changed._model = copy.deepcopy(changed.model)
    changed.model.config.rms_norm_eps = 0.1
    for other in (_lm(), _lm(strategy="dola"), _lm(strategy="greedy", floor=-5.0), changed):
        with pytest.raises(OptionError, match="use_cache: this cache has answers of another model or strategy"):
            CachingLM(other, file)
