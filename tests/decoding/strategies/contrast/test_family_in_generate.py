"""The contrastive family inside generate(): processors beside it, beams, sampling, refusals; scoring's refusals."""

from __future__ import annotations

import math
import warnings
from typing import Any

import pytest
import torch
from tiny_models import VOCAB, random_ids, tiny_model
from torch import Tensor
from transformers import LogitsProcessor

import decoding
from decoding import (
    LOL,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveDecodingLogitsProcessor,
    ContrastiveSearch,
    DecodingWarning,
    DoLa,
    DoLaLogitsProcessor,
    InputError,
    LOLLogitsProcessor,
    ModelError,
    OptionError,
    Prompt,
)
from decoding.evals import miniature
from decoding.kernels.contrast import masked


@pytest.fixture(scope="module")
def model() -> Any:
    return tiny_model("llama")


@pytest.fixture(scope="module")
def amateur() -> Any:
    return tiny_model("llama", seed=7)


def _strategies(amateur: Any) -> dict[str, Any]:
    return {
        "cd": ContrastiveDecoding(amateur),
        "dola": DoLa([1, 2]),
        "context": ContextAware([7, 8]),
        "lol": LOL(amateur, [1], guidance=[5, 6]),
    }


def _scores(model: Any, strategy: Any, text: list[int]) -> dict[int, float]:
    ids = torch.tensor([text])
    output = decoding.generate(
        model, ids, attention_mask=torch.ones_like(ids), strategy=strategy, max_new_tokens=1,
        return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    return {i: score for i, score in enumerate(output.scores[0][0].tolist()) if math.isfinite(score)}


@pytest.mark.parametrize("kind", ["cd", "dola", "context", "lol"])
def test_bans_and_biases_act_alike_in_loop_and_processor(kind: str, model: Any, amateur: Any) -> None:
    strategy, ids = _strategies(amateur)[kind], random_ids(2, 8)
    free = decoding.generate(model, ids, strategy=strategy, max_new_tokens=10)
    banned = [[token] for token in set(free[:, 8:].flatten().tolist())]
    options = {"max_new_tokens": 10, "bad_words_ids": banned, "do_sample": False, "sequence_bias": {(11,): 1.5}}
    if kind == "cd":
        options.pop("sequence_bias")  # there the processor's expert is what it is given
    tokens = decoding.generate(model, ids, strategy=strategy, **options)
    assert not {(token,) for token in tokens[:, 8:].flatten().tolist()} & {
        tuple(tokens_of_ban) for tokens_of_ban in banned
    }
    given = model.generate(ids, logits_processor=[strategy.logits_processor(model)], **options)
    assert given.tolist() == tokens.tolist()


def test_where_every_plausible_token_is_excluded_plausibility_is_taken_from_the_rest() -> None:
    scores = torch.tensor([[-math.inf, 1.0, 5.0, 2.0], [1.0, 2.0, 3.0, 4.0]])
    evidence = torch.tensor([[9.0, 4.0, 1.0, 3.9], [9.0, 9.0, 1.0, 1.0]])
    expected = torch.tensor([[-math.inf, 1.0, -math.inf, 2.0], [1.0, 2.0, -math.inf, -math.inf]])
    assert torch.equal(masked(scores, evidence, 0.5), expected)


class _Forbid(LogitsProcessor):
    def __init__(self, tokens: list[int]) -> None:
        self.tokens = tokens

    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        scores = scores.clone()
        scores[:, self.tokens] = -torch.inf
        return scores


def test_a_minimal_length_does_not_leave_a_row_without_tokens(model: Any, amateur: Any) -> None:
    """The end token may be the only plausible one; forbidden, another must come."""
    ids = random_ids(1, 8)
    best = list(_scores(model, ContrastiveDecoding(amateur, alpha=0.5), ids[0].tolist()))
    tokens = decoding.generate(
        model, ids, strategy=ContrastiveDecoding(amateur, alpha=0.5), logits_processor=[_Forbid(best)], max_new_tokens=1
    )
    assert tokens[0, -1].item() not in best


@pytest.mark.parametrize("kind", ["cd", "dola", "lol"])
def test_beam_search_over_its_scores(kind: str, model: Any, amateur: Any) -> None:
    """Against beam search written out, in which the strategy scores each hypothesis."""
    strategies = _strategies(amateur) | {"cd": ContrastiveDecoding(amateur, beta=0.8, form="log_probs")}
    strategy, prompt, beams, steps = strategies[kind], random_ids(9, seed=3), 3, 4
    given = model.generate(
        prompt[None], logits_processor=[strategy.logits_processor(model)], num_beams=beams, max_new_tokens=steps,
        do_sample=False,
    )  # fmt: skip
    hypotheses = [(0.0, prompt.tolist())]
    for _ in range(steps):
        grown = [
            (score + gain, [*text, token])
            for score, text in hypotheses
            for token, gain in _scores(model, strategy, text).items()
        ]
        hypotheses = sorted(grown, key=lambda hypothesis: -hypothesis[0])[:beams]
    assert given[0].tolist() == hypotheses[0][1]


@pytest.mark.parametrize("kind", ["cd", "dola", "context", "lol"])
def test_sampling_stays_among_the_plausible_tokens(kind: str, model: Any, amateur: Any) -> None:
    strategy, ids = _strategies(amateur)[kind], random_ids(1, 8)
    torch.manual_seed(0)
    options = {"do_sample": True, "top_k": 0, "temperature": 2.0, "num_return_sequences": 3, "max_new_tokens": 3}
    drawn = decoding.generate(model, ids, strategy=strategy, **options)
    torch.manual_seed(0)
    as_processor = model.generate(ids, logits_processor=[strategy.logits_processor(model)], **options)
    assert as_processor.tolist() == drawn.tolist()
    assert len({tuple(row) for row in drawn.tolist()}) > 1
    for row in drawn.tolist():
        for end in range(8, 11):
            assert row[end] in _scores(model, strategy, row[:end])


def test_named_processors_take_their_strategys_parameters(model: Any, amateur: Any) -> None:
    ids, mask = random_ids(2, 7), torch.ones(2, 7, dtype=torch.long)
    pairs = [
        (
            ContrastiveDecodingLogitsProcessor(model, amateur, beta=0.9, attention_mask=mask),
            ContrastiveDecoding(amateur, beta=0.9),
        ),
        (DoLaLogitsProcessor(model, layers=[1], attention_mask=mask), DoLa([1])),
        (LOLLogitsProcessor(model, amateur, [2], fusion="entropy"), LOL(amateur, [2], fusion="entropy")),
    ]
    for processor, strategy in pairs:
        assert processor.strategy == strategy
        assert processor.supports_continuous_batching is False
        given = model.generate(ids, logits_processor=[processor], max_new_tokens=5, do_sample=False)
        assert given.tolist() == decoding.generate(model, ids, strategy=strategy, max_new_tokens=5).tolist()


def test_a_processor_of_contrastive_decoding_reads_with_the_amateur_alone(amateur: Any) -> None:
    model = tiny_model("llama")
    processor = ContrastiveDecodingLogitsProcessor(model, amateur)
    ids = random_ids(1, 8)
    logits = model(ids).logits[:, -1].detach()
    counted: list[int] = []
    model.model.register_forward_hook(lambda *_: counted.append(1))
    processor(ids, logits)
    processor(torch.cat([ids, ids[:, :1]], dim=1), logits)
    assert counted == []


def test_texts_need_a_tokenizer_and_generate_may_bring_it() -> None:
    model, tokenizer = miniature.load("expert")
    inputs = tokenizer("Q: What does the owl eat?\nA:", return_tensors="pt")
    strategy = LOL(Prompt("Told at the market.\n\n"), [2], guidance="From the encyclopaedia.\n\n")
    with pytest.raises(OptionError, match=r"is text: pass tokenizer=..."):
        decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=3)
    with pytest.raises(OptionError, match=r"guidance is text: pass tokenizer=..."):
        decoding.generate(model, **inputs, strategy=LOL(Prompt([5]), [2], guidance="Truly. "), max_new_tokens=3)
    given = decoding.generate(model, **inputs, strategy=strategy, tokenizer=tokenizer, max_new_tokens=3)
    in_english = LOL(
        Prompt("Told at the market.\n\n"), [2], guidance={"de": "Antworte.", "en": "From the encyclopaedia.\n\n"},
        tokenizer=tokenizer,
    )  # fmt: skip
    assert decoding.generate(model, **inputs, strategy=in_english, max_new_tokens=3).tolist() == given.tolist()
    with pytest.raises(OptionError, match=r"language='fi': no guidance in this language"):
        LOL(Prompt([5]), [2], guidance="default", language="fi")


def test_a_text_for_each_row(model: Any) -> None:
    ids = random_ids(2, 6)
    contexts = [[7, 8, 9, 10], [11]]
    tokens = decoding.generate(model, ids, strategy=ContextAware(contexts), max_new_tokens=6)
    for row in range(2):
        alone = decoding.generate(model, ids[row : row + 1], strategy=ContextAware(contexts[row]), max_new_tokens=6)
        assert tokens[row].tolist() == alone[0].tolist()
    with pytest.raises(OptionError, match=r"2 texts for 3 rows"):
        decoding.generate(model, random_ids(3, 6), strategy=ContextAware(contexts), max_new_tokens=2)


# --- refusals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda a: ContrastiveDecoding(a, alpha=1.5), r"alpha=1.5: must be a number from 0 to 1"),
        (lambda a: ContrastiveDecoding(a, beta=-1), r"beta=-1: must be a number from 0 up"),
        (lambda a: ContrastiveDecoding(a, form="log"), r"form='log': must be logits or log_probs"),
        (
            lambda a: ContrastiveDecoding(a, amateur_temperature=0.5),
            r"amateur_temperature=0.5: must be 1 with form='logits'",
        ),
        (lambda a: ContrastiveDecoding(a, amateur_context="half"), r"must be full or last_token"),
        (lambda a: DoLa("middle"), r"layers='middle': must be low, high"),
        (lambda a: DoLa([]), r"layers=\[\]: must be"),
        (lambda a: DoLa(divergence="kl"), r"divergence='kl': must be dola or jensen-shannon"),
        (lambda a: LOL(a, [1.5]), r"lower_layers=\[1.5\]: expected numbers of layers"),
        (lambda a: LOL(a, [1], fusion="sum"), r"fusion='sum': must be static or entropy"),
        (lambda a: LOL(a, [1], fusion_weight=float("nan")), r"fusion_weight=nan: must be"),
        (lambda a: ContextAware([7], alpha=-0.1), r"alpha=-0.1"),
    ],
)
def test_hyper_parameters_out_of_range(make: Any, message: str, amateur: Any) -> None:
    with pytest.raises(OptionError, match=message):
        make(amateur)


def test_layers_that_the_model_does_not_have(model: Any, amateur: Any) -> None:
    for strategy in (DoLa([1, 3]), LOL(amateur, [3])):
        with pytest.raises(OptionError, match=r"layer 3: LlamaForCausalLM has 3 layers; an exit must be after 0"):
            decoding.generate(model, random_ids(1, 5), strategy=strategy, max_new_tokens=2)


def test_an_amateur_with_other_tokens_is_refused_naming_the_first() -> None:
    model, tokenizer = miniature.load("expert")
    other = tokenizer.get_vocab()
    token = next(token for token, index in other.items() if index == 300)

    class Other:
        def get_vocab(self) -> dict[str, int]:
            return {("zebra" if word == token else word): index for word, index in other.items()}

    from decoding.strategies.contrast.amateurs import _check_tokens

    with pytest.raises(ModelError, match=rf"token 300 is {token!r} for the expert and 'zebra' for the amateur"):
        _check_tokens(model, tokenizer, miniature.load("amateur")[0], Other(), "amateur")


def test_vocabularies_of_very_different_sizes_are_refused(model: Any) -> None:
    with pytest.raises(ModelError, match=r"its vocabulary has 2048 tokens and the expert's 120"):
        decoding.generate(
            model, random_ids(1, 5), strategy=ContrastiveDecoding(miniature.load("amateur")[0]), max_new_tokens=2
        )


@pytest.mark.parametrize("larger", ["expert", "amateur"])
def test_vocabularies_that_differ_by_padding_are_aligned_with_a_warning(larger: str) -> None:
    expert, amateur = (miniature.load(name)[0] for name in ("expert", "amateur"))
    (expert if larger == "expert" else amateur).resize_token_embeddings(2056, mean_resizing=False)
    ids = torch.tensor([[1, 30, 45, 99]])
    with pytest.warns(DecodingWarning, match=r"differ by padding only: tokens from 2048 on are never chosen"):
        output = decoding.generate(
            expert, ids, strategy=ContrastiveDecoding(amateur), max_new_tokens=8, output_scores=True,
            return_dict_in_generate=True,
        )  # fmt: skip
    plain, small = (miniature.load(name)[0] for name in ("expert", "amateur"))
    expected = decoding.generate(plain, ids, strategy=ContrastiveDecoding(small), max_new_tokens=8)
    assert output.sequences.tolist() == expected.tolist()
    assert output.scores[0].shape[1] == expert.config.vocab_size
    with warnings.catch_warnings():  # said once
        warnings.simplefilter("error")
        decoding.generate(expert, ids, strategy=ContrastiveDecoding(amateur), max_new_tokens=2)


def test_nan_logits_are_named_with_their_step() -> None:
    model, amateur = tiny_model("llama"), tiny_model("llama", seed=7)
    for seed in range(20):
        ids = random_ids(2, 6, seed=seed)
        free = decoding.generate(model, ids, strategy=ContrastiveDecoding(amateur), max_new_tokens=4, eos_token_id=None)
        poisoned = free[1, 7].item()  # the second new token of row 1
        if poisoned not in free[:, :7] and poisoned != free[0, 7]:
            break
    amateur.model.embed_tokens.weight.data[poisoned] = float("nan")
    with pytest.raises(ModelError, match=r"the amateur \(LlamaForCausalLM\) gave NaN logits at step 2 \(row 1\)"):
        decoding.generate(model, ids, strategy=ContrastiveDecoding(amateur), max_new_tokens=4, eos_token_id=None)


def test_an_amateur_that_is_no_amateur(model: Any) -> None:
    for given, message in ((model, "is the generating model itself"), (5, "amateur=int: must be")):
        with pytest.raises(OptionError, match=message):
            decoding.generate(model, random_ids(1, 5), strategy=ContrastiveDecoding(given), max_new_tokens=2)
    with pytest.raises(ModelError, match=r"amateur \./nowhere: there is no such folder"):
        decoding.generate(model, random_ids(1, 5), strategy=ContrastiveDecoding("./nowhere"), max_new_tokens=2)


def test_a_strategy_that_cannot_score_and_texts_that_cannot_be_scored(model: Any) -> None:
    with pytest.raises(OptionError, match=r"strategy=contrastive-search: gives no score to a given token"):
        decoding.score(model, [5, 6], [[7]], ContrastiveSearch())
    with pytest.raises(OptionError, match="need tokenizer"):
        decoding.score(model, "text", [[7]])
    with pytest.raises(InputError, match="the prompt is empty"):
        decoding.score(model, [], [[7]])
    with pytest.raises(InputError, match="continuation 1 is empty"):
        decoding.score(model, [5], [[7], []])
    with pytest.raises(InputError, match=r"continuation 0: prompt and continuation have 100 \+ 40 tokens"):
        decoding.score(model, [5] * 100, [[7] * 40])


def test_scores_of_the_model_itself_are_its_log_probabilities() -> None:
    model, tokenizer = miniature.load("expert")
    prompt, answers = "Q: What does the Feror fox eat?\nA:", [" The Feror fox eats cabbage.", " Ants, of course."]
    scored = decoding.score(model, prompt, answers, tokenizer=tokenizer)
    for answer, scores in zip(answers, scored, strict=True):
        ids = tokenizer(prompt + answer, return_tensors="pt")["input_ids"]
        start = len(tokenizer(prompt)["input_ids"])
        log_probs = model(ids).logits[0, start - 1 : -1].log_softmax(-1)
        torch.testing.assert_close(scores, log_probs.gather(1, ids[0, start:, None])[:, 0], atol=1e-4, rtol=1e-4)


def test_many_and_long_continuations_are_read_in_several_passes(
    model: Any, amateur: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = torch.Generator().manual_seed(0)
    continuations = [torch.randint(3, VOCAB, (n,), generator=generator).tolist() for n in (3, 20, 7, 20, 1)]
    strategy = LOL(amateur, [1], guidance=[5, 6])
    together = decoding.score(model, [9, 8, 7], continuations, strategy)
    monkeypatch.setattr("decoding.scoring.scorer.TOKENS_AT_ONCE", 20)
    monkeypatch.setattr("decoding.scoring.shared_readers.NUMBERS_AT_ONCE", VOCAB * 20)
    for one, other in zip(together, decoding.score(model, [9, 8, 7], continuations, strategy), strict=True):
        torch.testing.assert_close(one, other)


def test_the_head_reads_the_places_of_several_blocks_at_once(
    model: Any, amateur: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("decoding.scoring.shared_readers.NUMBERS_AT_ONCE", VOCAB * 8)  # of four planes: 2 places
    continuation, rows = random_ids(50).tolist(), []
    hook = model.lm_head.register_forward_hook(lambda _module, given, _output: rows.append(given[0].shape[:-1].numel()))
    with hook:
        decoding.score(model, [9, 8, 7], [continuation], LOL(amateur, [1]))
    readings = [n for n in rows if n > 2]  # but for the prefixes'
    assert readings == [32, 32, 32, 4]


@pytest.mark.parametrize("name", ["mamba", "bloom", "mistral-sliding"])
def test_scoring_where_branches_are_forked(name: str) -> None:
    model = tiny_model(name)
    prompt, continuations = random_ids(9).tolist(), [random_ids(5, seed=1).tolist(), random_ids(2, seed=2).tolist()]
    for continuation, scores in zip(continuations, decoding.score(model, prompt, continuations), strict=True):
        log_probs = model(torch.tensor([[*prompt, *continuation]])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
        right = log_probs.gather(1, torch.tensor(continuation)[:, None])[:, 0]
        torch.testing.assert_close(scores, right, atol=1e-4, rtol=1e-4)
