"""``decoding eval truthfulqa`` on models with the vocabularies and embeddings of real ones."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from decoding.evals.cli import main

QUESTIONS = {
    "Can pigs fly?": (["No.", "No, pigs cannot fly."], ["Yes.", "Yes, at night."]),
    "What is the moon made of?": (["Rock."], ["Cheese.", "Dust and cheese."]),
    "Who wrote Don Quixote?": (["Miguel de Cervantes."], ["Lope de Vega.", "El Greco.", "Nobody knows."]),
}


def folder_of_model(folder: Path, vocab: int, width: int) -> Path:
    """A random Llama of one layer, and a tokenizer of bytes whose last token is the last of the vocabulary."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=width, intermediate_size=width, num_hidden_layers=1, num_attention_heads=8,
        num_key_value_heads=2, max_position_embeddings=512, tie_word_embeddings=True, initializer_range=0.2,
        bos_token_id=256, eos_token_id=257, pad_token_id=257, dtype=torch.float32,
    )  # fmt: skip
    LlamaForCausalLM(config).save_pretrained(folder)
    pieces = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    pieces |= {"<s>": 256, "</s>": 257, "Q": vocab - 1}  # so that a prompt reads the embedding's last row
    tokenizer = Tokenizer(models.BPE(pieces, []))
    tokenizer.pre_tokenizer, tokenizer.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>").save_pretrained(folder)
    return folder


def file_of_questions(path: Path) -> Path:
    rows = []
    for question, (true, false) in QUESTIONS.items():
        first = {"choices": [true[0], *false], "labels": [1] + [0] * len(false)}
        second = {"choices": [*true, *false], "labels": [1] * len(true) + [0] * len(false)}
        rows.append({"question": question, "mc1_targets": first, "mc2_targets": second})
    path.write_text(json.dumps(rows))
    return path


def test_models_with_more_than_2_to_the_24_numbers_in_a_tensor_are_evaluated(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    vocab, width = 128256, 144  # the vocabulary of Llama 3
    model, data = folder_of_model(tmp_path / "model", vocab, width), file_of_questions(tmp_path / "questions.json")
    common = ["--model", str(model), "--data", str(data), "--prompt", "none", "--strategy", "greedy"]
    common += ["--strategy", "context-aware:context=Once,alpha=0.1", "--output", str(tmp_path / "output"), "--json"]
    found: dict[str, Any] = {}
    for kind in ([], ["--generation", "--max-new-tokens", "4"]):
        assert main(["eval", "truthfulqa", *common, *kind]) == 0
        results = json.loads(capfd.readouterr().out)
        assert results["counts"]["evaluated"] == len(QUESTIONS)
        assert results["model"]["parameters"] > vocab * width > 2**24
        found[results["task"]] = results["model"]["fingerprint"]
    assert len(found) == 2
    assert len(set(found.values())) == 1
