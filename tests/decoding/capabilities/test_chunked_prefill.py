"""Prompts read in pieces: every strategy says the same, every reader keeps to the size, and who misreads is refused."""

from __future__ import annotations

import copy
import functools
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_models import left_padded, random_prompt, tiny_model

import decoding
from decoding import (
    LOL,
    ContextAware,
    ContrastiveDecoding,
    ContrastiveSearch,
    DoLa,
    ModelError,
    OptionError,
    Prompt,
    Strategy,
)
from decoding.capabilities.chunked_prefill import enable_chunked_prefill, why_not_chunked
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.tools.architectures.tiny import tiny_model as tiny_type

PROMPTS = [random_prompt(7, seed=1), random_prompt(13, seed=2)]  # longer than the tiny models' window of 8
EVERY_SIZE = [1, 4, 12, 13, 100]  # one token, parts that leave one of 13, all but one, all, more
GUIDE = [9, 40, 17]
STEPS = 3  # the pieces end with the prompt; these read what they left


@functools.cache
def lora(name: str) -> Any:
    """A model with an adapter "liar" that says something: fresh LoRA matrices add nothing."""
    peft = pytest.importorskip("peft", reason="needs peft")
    torch.manual_seed(1)
    config = peft.LoraConfig(r=4, lora_alpha=8, target_modules="all-linear")
    model = peft.get_peft_model(tiny_model(name), config, adapter_name="liar").eval()
    for parameter_name, parameter in model.named_parameters():
        if "lora_" in parameter_name:
            torch.nn.init.normal_(parameter, std=0.3)
    return model


@functools.cache
def model_of(name: str) -> Any:
    """The model that strategies share: what is checked once per model and size is checked once."""
    return tiny_model(name)


@functools.cache
def amateur_of(name: str) -> Any:
    return tiny_model(name, seed=7)


Case = Callable[[str], tuple[Any, Strategy]]
STRATEGIES: dict[str, Case] = {
    "contrastive search": lambda name: (model_of(name), ContrastiveSearch(0.6, 4)),
    "a window of the history": lambda name: (model_of(name), ContrastiveSearch(0.9, 4, max_history=6)),
    "a separate amateur": lambda name: (model_of(name), ContrastiveDecoding(amateur_of(name))),
    "a LoRA amateur": lambda name: (lora(name), ContrastiveDecoding("liar")),
    "a prompted amateur": lambda name: (model_of(name), ContrastiveDecoding(Prompt(GUIDE))),
    "DoLa": lambda name: (model_of(name), DoLa([0, 1, 2])),
    "context-aware": lambda name: (model_of(name), ContextAware(GUIDE)),
    "LOL, a separate amateur": lambda name: (model_of(name), LOL(amateur_of(name), [1, 2], guidance=GUIDE)),
    "LOL, a LoRA amateur": lambda name: (lora(name), LOL("liar", [1, 2], guidance=GUIDE)),
}


def made(model: Any, strategy: Strategy, size: int | None, batch: dict[str, Any], way: str = "facade") -> Any:
    options = {"max_new_tokens": STEPS, "return_dict_in_generate": True, "output_scores": True, "pad_token_id": 0}
    options |= {"prefill_chunk_size": size, "do_sample": False}
    if way == "facade":
        return decoding.generate(model, **batch, strategy=strategy, **options)
    return model.generate(**batch, custom_generate=strategy, **options)


def same(one: Any, other: Any) -> None:
    assert one.sequences.tolist() == other.sequences.tolist()
    for mine, theirs in zip(one.scores, other.scores, strict=True):
        # float32: a matrix product of other shapes sums in another order, and logits here reach 30
        torch.testing.assert_close(mine, theirs, atol=2e-4, rtol=1e-4)


@contextmanager
def widths(*models: Any) -> Iterator[list[int]]:
    """How many tokens each forward pass of these models reads of a row."""
    seen: list[int] = []
    hooks = [
        model.get_input_embeddings().register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[1]))
        for model in models
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


# Every strategy is read in pieces by one model. Sizes act on a stream: on that of one reader, and on that of several,
# whose prompts differ in length. What pieces meet in a model are its positions, masks and windows: behind the prompt
# alone, behind the longer prompt of another reader, and with the rows of an adapter (GPT-2's matrices are transposed).
PIECES: list[tuple[str, str, list[int]]] = [
    *(("llama", strategy, [4]) for strategy in STRATEGIES),
    ("llama", "contrastive search", [1, 12, 13, 100]),
    ("llama", "LOL, a LoRA amateur", [1, 12, 13, 100]),
    ("mistral-sliding", "a window of the history", [1, 12]),  # less and more than its window
    ("mistral-sliding", "LOL, a separate amateur", [1, 12]),
    ("gpt2", "contrastive search", [4]),
    ("gpt2", "LOL, a LoRA amateur", [4]),
    ("gemma2", "contrastive search", [4]),
    ("gemma2", "context-aware", [4]),
    ("gemma2", "DoLa", [4]),
    ("bloom", "contrastive search", [4]),  # its branches are forked
    ("bloom", "a prompted amateur", [4]),
]


@pytest.mark.parametrize(("name", "strategy", "sizes"), PIECES, ids=lambda value: str(value))
def test_every_strategy_says_the_same_whatever_the_pieces_and_reads_no_more_than_one(
    name: str, strategy: str, sizes: list[int]
) -> None:
    model, how = STRATEGIES[strategy](name)
    batch = left_padded(PROMPTS)
    whole = made(model, how, None, batch)
    for size in sizes:
        assert size in EVERY_SIZE
        same(made(model, how, size, batch), whole)
    if name != "llama" or sizes != [4]:
        return
    with widths(model, amateur_of(name)) as seen:  # what is checked once has been
        made(model, how, 4, batch)
    readers = 2 if "separate" in strategy else 1  # that read apart
    assert max(seen) == 4
    assert sum(width > 1 for width in seen if width == 4) >= 3 * readers
    if strategy == "LOL, a separate amateur":  # so the hooks see whole prompts where there are any
        with widths(model, amateur_of(name)) as seen:
            made(model, how, None, batch)
        assert max(seen) >= 13


@pytest.mark.parametrize("strategy", ["contrastive search", "LOL, a separate amateur"])
def test_custom_generate_reads_in_pieces_too(strategy: str) -> None:
    model, how = STRATEGIES[strategy]("llama")
    batch = left_padded(PROMPTS)
    with widths(model) as seen:
        found = made(model, how, 5, batch, way="custom_generate")
    assert max(seen) == 5
    same(found, made(model, how, None, batch))


@pytest.mark.parametrize("name", ["falcon_h1", "qwen3_next", "lfm2", "bamba"])
def test_recurrent_models_whose_branches_are_forked_say_the_same(name: str) -> None:
    model = tiny_type(name)
    tried = [(ContrastiveSearch(0.6, 4), 4)]
    if name == "falcon_h1":  # an amateur forks no branches: its states are carried over pieces as the model's are
        tried.append((ContrastiveDecoding(tiny_type(name, seed=3)), 5))
    for strategy, size in tried:
        whole = made(model, strategy, None, left_padded(PROMPTS))
        same(made(model, strategy, size, left_padded(PROMPTS)), whole)
    if name != "qwen3_next":  # the next test has it
        alone = {"input_ids": torch.tensor([PROMPTS[0]])}
        same(made(model, ContrastiveSearch(0.6, 4), 1, alone), made(model, ContrastiveSearch(0.6, 4), None, alone))


@pytest.mark.parametrize(("name", "size"), [("qwen3_next", 1), ("git", 4)])
def test_what_is_right_without_padding_needs_none_of_the_checks_with_it(name: str, size: int) -> None:
    """Contrastive search checks how a model branches on a padded batch too."""
    model, alone = tiny_type(name), {"input_ids": torch.tensor([PROMPTS[1]])}
    whole = made(model, ContrastiveSearch(0.6, 4), None, alone)
    model = tiny_type(name)
    enable_chunked_prefill(model, size, padded=False)
    same(made(model, ContrastiveSearch(0.6, 4), None, alone), whole)
    with pytest.raises(OptionError, match="differently in chunks than in one pass"):
        enable_chunked_prefill(model, size, padded=True)


MISREAD = {
    "recurrent layers that begin anew": ("jamba", 4, False, "differently in chunks than in one pass"),
    "padding of one token": ("qwen3_next", 1, True, "differently in chunks than in one pass"),
    "padding in the cache": ("git", 4, True, "differently in chunks than in one pass"),
    "a cache of its own": ("mamba", 4, False, "cannot read a prompt in chunks"),
    "no cache": ("openai-gpt", 4, False, "is read without a cache"),
}


@pytest.mark.parametrize("case", MISREAD)
def test_a_model_that_misreads_its_pieces_is_refused(case: str) -> None:
    name, size, padded, reason = MISREAD[case]
    model, batch = tiny_type(name), left_padded(PROMPTS if padded else [PROMPTS[1], random_prompt(13, seed=3)])
    batch["input_ids"][batch["attention_mask"] == 0] = 5  # a pad token that says something, as real ones do
    with pytest.raises(OptionError, match=f"prefill_chunk_size={size}: {type(model).__name__} .*{reason}"):
        made(model, ContrastiveSearch(0.6, 4), size, batch)
    made(model, ContrastiveSearch(0.6, 4), 13, batch)  # one piece is the prompt
    if reason.startswith("otherwise"):  # so it is in transformers' own greedy search, which says nothing
        whole, pieces = (
            model.generate(
                **batch, max_new_tokens=1, do_sample=False, prefill_chunk_size=chunk_size, return_dict_in_generate=True,
                output_logits=True, pad_token_id=0,
            ).logits[0]
            for chunk_size in (None, size)
        )  # fmt: skip
        assert float((whole - pieces).abs().max()) > 0.05


def test_half_precision_is_no_reason_to_refuse() -> None:
    for name in ("llama", "mixtral", "qwen3_next"):
        assert why_not_chunked(tiny_type(name).to(torch.bfloat16), 4) == ""
    assert "differently in chunks" in why_not_chunked(tiny_type("jamba").to(torch.bfloat16), 4)


def test_a_model_that_gives_no_numbers_is_looked_at_again() -> None:
    model = tiny_model("llama")
    weights = model.lm_head.weight, model.model.norm.weight
    kept = [weight.detach().clone() for weight in weights]
    with torch.no_grad():
        weights[1].fill_(torch.nan)
    with pytest.raises(ModelError, match="NaN"):
        made(model, ContrastiveSearch(0.6, 4), 4, left_padded(PROMPTS))
    with torch.no_grad():
        for weight, value in zip(weights, kept, strict=True):
            weight.copy_(value)
    made(model, ContrastiveSearch(0.6, 4), 4, left_padded(PROMPTS))


@pytest.mark.parametrize("size", [0, -1, 2.5, True, "4"])
def test_a_size_that_is_none_is_one_line(size: Any) -> None:
    with pytest.raises(OptionError, match=f"prefill_chunk_size={size!r}: must be a whole number from 1"):
        made(tiny_model("llama"), ContrastiveSearch(0.6, 4), size, left_padded(PROMPTS))


def test_prompts_of_other_kinds_are_refused() -> None:
    model = tiny_model("llama")
    embeds = model.get_input_embeddings()(torch.tensor(PROMPTS[:1])).detach()
    with pytest.raises(OptionError, match="chunked prefill needs a prompt of input_ids"):
        decoding.generate(
            model, inputs_embeds=embeds, strategy=ContrastiveSearch(0.6, 4), prefill_chunk_size=4, max_new_tokens=2
        )
    # In transformers their encoder's mask is cut with the decoder's prompt: rows with padding change.
    for name in ("t5", "bart"):
        with pytest.raises(OptionError, match="is an encoder-decoder, whose encoder reads the prompt in one pass"):
            made(tiny_model(name), ContrastiveSearch(0.6, 4), 100, left_padded(PROMPTS))


def test_a_text_whose_states_nobody_kept_is_read_again_in_pieces() -> None:
    """A cache of plain greedy search: the penalty wants the hidden states of what is in it."""
    model, batch = tiny_model("llama"), left_padded(PROMPTS)
    begun = model.generate(
        **batch, max_new_tokens=4, do_sample=False, return_dict_in_generate=True, pad_token_id=0
    )  # fmt: skip
    mask = torch.nn.functional.pad(batch["attention_mask"], (0, 4), value=1)
    found = []
    for size in (None, 4):
        cache = copy.deepcopy(begun.past_key_values)
        so_far = {"input_ids": begun.sequences, "attention_mask": mask, "past_key_values": cache}
        made(model, ContrastiveSearch(0.6, 4), size, {**so_far, "past_key_values": copy.deepcopy(cache)})
        with widths(model) as seen:
            found.append(made(model, ContrastiveSearch(0.6, 4), size, so_far))
        assert max(seen) == (size or 16)
    same(*found)


def test_a_prompt_whose_answers_are_scored_is_read_in_pieces() -> None:
    """As the model's own generation config has it."""
    for strategy in (DoLa([0, 1]), ContrastiveDecoding(amateur_of("llama")), ContextAware(GUIDE)):
        model, found = tiny_model("llama"), []
        for size in (None, 5):
            model.generation_config.prefill_chunk_size = size
            decoding.score(model, random_prompt(30, seed=5), [[5, 6, 7], [8, 9]], strategy=strategy)
            with widths(model, amateur_of("llama")) as seen:
                found.append(decoding.score(model, random_prompt(30, seed=5), [[5, 6, 7], [8, 9]], strategy=strategy))
            assert max(seen) == size or (size is None and max(seen) >= 30)
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-4)


def test_a_processor_reads_its_own_prompt_in_pieces() -> None:
    model, batch, texts = tiny_model("llama"), left_padded(PROMPTS), []
    for options in ({}, {"prefill_chunk_size": 4}):
        processor = ContrastiveDecoding(amateur_of("llama")).logits_processor(
            model, attention_mask=batch["attention_mask"], **options
        )
        model.generate(**batch, num_beams=2, max_new_tokens=1, pad_token_id=0, logits_processor=[processor])
        with widths(amateur_of("llama")) as seen:
            texts.append(
                model.generate(
                    **batch, num_beams=2, max_new_tokens=STEPS, pad_token_id=0, logits_processor=[processor]
                ).tolist()
            )
        assert max(seen) == options.get("prefill_chunk_size", 13)
    assert texts[0] == texts[1]


def test_rows_that_share_a_pass_are_not_read_in_pieces_by_a_model_that_misreads_them() -> None:
    """Long prompts of several readers are read in pieces unasked, the shorter behind padding."""
    model, batch = tiny_type("git"), left_padded([random_prompt(90, seed=4)])
    one, other = (made(model, strategy, None, batch).scores[0] for strategy in (ContextAware(GUIDE), Apart(GUIDE)))
    torch.testing.assert_close(one, other, atol=2e-4, rtol=1e-4)


class Apart(ContextAware):
    """Each reader in a pass of its own."""

    fuse = False


# --- on the command line -------------------------------------------------------------------------------------------

embedded = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded expert is not here"
)
TEXT = " ".join(miniature.prompts()[:4])


@embedded
def test_generate_reads_in_pieces(capsys: pytest.CaptureFixture[str]) -> None:
    strategy = "contrastive-decoding:amateur=amateur"
    command = ["generate", "--prompt", TEXT, "--strategy", strategy, "--max-new-tokens", "4", "--device", "cpu"]
    assert main(command) == 0
    with only_pieces(24):
        assert main([*command, "--prefill-chunk", "24"]) == 0
    assert main([*command, "--prefill-chunk", f"1{'0' * 30}"]) == 0  # more than there can be
    lines = capsys.readouterr().out.splitlines()
    third = len(lines) // 3
    assert lines[:third] == lines[third : 2 * third] == lines[2 * third :]


@embedded
def test_compare_and_evaluations_read_in_pieces(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with only_pieces(24):
        compare = ["compare", "--prompt", TEXT, "--max-new-tokens", "2", "--device", "cpu", "--prefill-chunk", "24"]
        compare += ["--strategy", "greedy", "--strategy", "contrastive-search", "--strategy", "nucleus"]
        assert main(compare) == 0
    capsys.readouterr()
    evaluate = ["eval", "truthfulqa", "--miniature", "--limit", "1", "--strategy", "dola", "--device", "cpu", "--json"]
    found = []
    for options in ([], ["--prefill-chunk", "24"]):
        assert main([*evaluate, *options]) == 0
        found.append(json.loads(capsys.readouterr().out)["configurations"][0]["metrics"])
    for one, other in zip(*(metrics.values() for metrics in found), strict=True):
        assert other["value"] == pytest.approx(one["value"], abs=1e-3)
    with only_pieces(24):
        assert main([*evaluate, "--generation", "--max-new-tokens", "2", "--prefill-chunk", "24"]) == 0


@contextmanager
def only_pieces(size: int) -> Iterator[None]:
    """No prompt is read in one pass of more tokens."""
    real, seen = torch.nn.functional.embedding, []

    def watched(ids: Any, *args: Any, **kwargs: Any) -> Any:
        seen.append(ids.shape[-1])
        return real(ids, *args, **kwargs)

    torch.nn.functional.embedding = watched
    try:
        yield
    finally:
        torch.nn.functional.embedding = real
    assert seen
    assert max(seen) <= size


@pytest.mark.parametrize("command", [["generate", "--prompt", TEXT], ["eval", "truthfulqa", "--miniature"]])
@pytest.mark.parametrize("given", ["0", "-4", "many", "2.5", ""])
def test_a_size_that_is_none_ends_with_2(command: list[str], given: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command, "--prefill-chunk", given]) == 2
    assert "--prefill-chunk" in capsys.readouterr().err


@embedded
def test_an_encoder_decoder_is_one_line_on_the_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_model("t5").save_pretrained(tmp_path)
    miniature.load("expert")[1].save_pretrained(tmp_path)
    for command in (["generate", "--prompt", TEXT], ["compare", "--prompt", TEXT, "--strategy", "greedy"]):
        capsys.readouterr()
        assert main([*command, "--model", str(tmp_path), "--prefill-chunk", "4"]) == 2
        error = capsys.readouterr().err
        assert error.startswith("decoding: prefill_chunk_size=4: T5ForConditionalGeneration is an encoder-decoder")
        assert error.count("\n") == 1


@embedded
def test_a_model_that_misreads_is_one_line_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tiny_type("jamba").save_pretrained(tmp_path)
    miniature.load("expert")[1].save_pretrained(tmp_path)
    command = ["generate", "--model", str(tmp_path), "--prompt", TEXT, "--strategy", "greedy", "--device", "cpu"]
    assert main([*command, "--prefill-chunk", "4"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("decoding: prefill_chunk_size=4: JambaForCausalLM reads a prompt differently in chunks")
