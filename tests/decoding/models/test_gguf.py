"""Models from GGUF files: the weights, the tokens, the end tokens; what is refused; what is written of them."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from command_results import refused
from tokenizers import pre_tokenizers

pytest.importorskip("gguf")
pytest.importorskip("accelerate")

import gguf
from tiny_gguf import TEXT, tiny_gemma3, tiny_llama, tokenizer_of_digits, write_gemma3, write_llama

import decoding
from decoding import DecodingWarning, ModelError, OptionError
from decoding.evals.cli import main
from decoding.evals.metrics.units import splitter
from decoding.induce import Example, Recipe

TOKENIZER = tokenizer_of_digits()
VOCAB = len(TOKENIZER)
TEXTS = [*TEXT, "  7 beans", "12  3<|im_end|>\n4", "naïve 字 🙂"]


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A quantised file, and the model that it holds."""
    file = tmp_path_factory.mktemp("gguf") / "tiny.gguf"
    return file, write_llama(file, tiny_llama(VOCAB), TOKENIZER, quantised=True)


def _ids() -> torch.Tensor:
    return torch.tensor([TOKENIZER(TEXT[0])["input_ids"]])


def test_an_adapter_beside_a_file_is_no_part_of_the_model(written: tuple[Path, Any], tmp_path: Path) -> None:
    file = tmp_path / "tiny.gguf"
    file.write_bytes(written[0].read_bytes())
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(ModelError, match=r"tiny\.gguf: a LoRA adapter lies beside its weights") as error:
        decoding.load(str(file))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("dtype", [None, "auto", "bfloat16"])
def test_weights_are_dequantised_to_the_dtype_asked_for(
    dtype: str | None, written: tuple[Path, Any], capfd: pytest.CaptureFixture[str]
) -> None:
    file, right = written
    model, _ = decoding.load(str(file), "cpu", dtype)
    assert capfd.readouterr() == ("", "")
    assert model.dtype == (torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    assert not model.training
    expected = right.state_dict()
    assert model.state_dict().keys() == expected.keys()
    for name, weights in model.state_dict().items():
        assert torch.equal(weights, expected[name].to(model.dtype)), name
    if model.dtype == torch.float32:
        assert torch.equal(model(_ids()).logits, right(_ids()).logits)


def test_tokens_are_those_of_the_tokenizer_that_the_file_was_made_of(written: tuple[Path, Any]) -> None:
    _, tokenizer = decoding.load(str(written[0]))
    for text in TEXTS:
        assert tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"], text
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    chat = [{"role": "user", "content": "Why 12?"}]
    spoken = tokenizer.apply_chat_template(chat, tokenize=False)
    assert spoken == "<|im_start|>user\nWhy 12?<|im_end|>\n"
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.pad_token) == (
        "<|im_start|>", "<|endoftext|>", "<|endoftext|>",
    )  # fmt: skip


def test_digits_would_be_split_otherwise_by_gpt2s_rule() -> None:
    """Or the test before would show nothing of the splitting."""
    as_gpt2 = tokenizer_of_digits()
    as_gpt2.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    assert any(as_gpt2(text)["input_ids"] != TOKENIZER(text)["input_ids"] for text in TEXTS)


@pytest.mark.parametrize(
    ("metadata", "begins", "ends"),
    [
        ({}, False, [0, 2]),  # the chat template ends turns with token 2
        ({"tokenizer.ggml.add_bos_token": True}, True, [0, 2]),
        (
            {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": None},
            True,
            [0, 2],
        ),  # whose files do not say it
        ({"tokenizer.chat_template": None}, False, 0),
        ({"tokenizer.chat_template": None, "tokenizer.ggml.eot_token_id": 5}, False, [0, 5]),
    ],
)
def test_bos_and_end_tokens_are_what_llama_cpp_makes_of_the_file(
    metadata: dict[str, Any], begins: bool, ends: Any, tmp_path: Path
) -> None:
    write_llama(tmp_path / "tiny.gguf", tiny_llama(VOCAB), TOKENIZER, **metadata)
    model, tokenizer = decoding.load(str(tmp_path / "tiny.gguf"))
    assert (tokenizer("a")["input_ids"][0] == tokenizer.bos_token_id) == begins
    assert model.generation_config.eos_token_id == ends


def test_a_generation_stops_at_the_end_of_a_turn(written: tuple[Path, Any]) -> None:
    model, _ = decoding.load(str(written[0]))

    def forced(_: Any, scores: torch.Tensor) -> torch.Tensor:
        scores[:, 2] = scores.max() + 100
        return scores

    tokens = decoding.generate(
        model, _ids(), strategy=decoding.DoLa(layers=[1]), logits_processor=[forced], max_new_tokens=8
    )
    assert tokens.shape[1] == _ids().shape[1] + 1


def test_a_split_that_nobody_knows_is_warned_of(tmp_path: Path) -> None:
    write_llama(tmp_path / "tiny.gguf", tiny_llama(VOCAB), TOKENIZER, **{"tokenizer.ggml.pre": "made-up"})
    with pytest.warns(DecodingWarning, match="splits text as 'made-up', which is not known here"):
        decoding.load(str(tmp_path / "tiny.gguf"))


@pytest.mark.parametrize("kind", ["linear", "yarn"])
def test_a_rotary_embedding_that_is_scaled(kind: str, tmp_path: Path) -> None:
    """Transformers leaves the scaling of a Llama out; the linear one is put back, others are warned of."""
    scaling = {"llama.rope.scaling.type": kind, "llama.rope.scaling.factor": 4.0}
    right = write_llama(tmp_path / "tiny.gguf", tiny_llama(VOCAB), TOKENIZER, **scaling)
    if kind == "yarn":
        with pytest.warns(DecodingWarning, match=r"tiny\.gguf: scales its rotary embedding \(yarn\)"):
            decoding.load(str(tmp_path / "tiny.gguf"))
        return
    model, _ = decoding.load(str(tmp_path / "tiny.gguf"))
    assert not torch.equal(model(_ids()).logits, right(_ids()).logits)
    right.config.rope_parameters |= {"rope_type": "linear", "factor": 4.0}
    scaled = type(right)(right.config).eval()
    scaled.load_state_dict(right.state_dict())
    assert torch.equal(model(_ids()).logits, scaled(_ids()).logits)


def test_gemma_with_windows_and_its_own_norm(tmp_path: Path) -> None:
    """Norms are stored as weight + 1; five layers of six see 8 tokens; both rotary bases come back."""
    letters = [chr(number) for number in range(97, 123)]
    tokens = ["<pad>", "<eos>", "<bos>", "<unk>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", *letters]
    tokens += ["th", "the", "▁the", "▁a", "<end_of_turn>"]
    right = tiny_gemma3(len(tokens))
    write_gemma3(
        tmp_path / "gemma.gguf",
        right,
        tokens,
        **{"tokenizer.chat_template": "{{ messages[0]['content'] }}<end_of_turn>"},
    )
    model, tokenizer = decoding.load(str(tmp_path / "gemma.gguf"))
    assert model.state_dict().keys() == right.state_dict().keys()
    for name, weights in model.state_dict().items():
        torch.testing.assert_close(weights, right.state_dict()[name], rtol=0, atol=2e-7)  # 1 was added and taken
    ids = tokenizer("the cat sat on a mat", return_tensors="pt")["input_ids"]
    assert ids[0, 0] == 2
    assert tokenizer.convert_ids_to_tokens(ids[0, 1:3]) == ["the", "▁"]
    torch.testing.assert_close(model(ids).logits, right(ids).logits, rtol=0, atol=1e-3)
    assert model.config.layer_types.count("sliding_attention") == 6
    assert model.generation_config.eos_token_id == [1, len(tokens) - 1]


@pytest.mark.parametrize("as_path", [False, True])
def test_a_command_and_an_amateur(
    as_path: bool, written: tuple[Path, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, _ = written
    write_llama(tmp_path / "other.gguf", tiny_llama(VOCAB, seed=1), TOKENIZER)
    amateur = tmp_path / "other.gguf"
    if as_path:
        model, _ = decoding.load(file)  # type: ignore[arg-type]
        strategy = decoding.ContrastiveDecoding(amateur)
        tokens = decoding.generate(model, _ids(), strategy=strategy, max_new_tokens=6)
        other, _ = decoding.load(str(amateur))
        right = decoding.generate(model, _ids(), strategy=decoding.ContrastiveDecoding(other), max_new_tokens=6)
        assert torch.equal(tokens, right)
    else:
        command = ["generate", "--model", str(file), "--strategy", f"contrastive-decoding:amateur={amateur}"]
        assert main([*command, "--prompt", "the old", "--max-new-tokens", "3", "--json"]) == 0
        printed = capsys.readouterr()
        assert json.loads(printed.out)["new_tokens"] == 3
        assert printed.err == ""


def test_export_writes_a_folder_that_decodes_alike(written: tuple[Path, Any], tmp_path: Path) -> None:
    file, right = written
    write_llama(tmp_path / "other.gguf", tiny_llama(VOCAB, seed=1), TOKENIZER)
    strategy = f"contrastive-decoding:amateur={tmp_path / 'other.gguf'}"
    folder = decoding.export(file, strategy, tmp_path / "out")
    model, tokenizer = decoding.load(str(folder))
    assert torch.equal(model(_ids()).logits, right(_ids()).logits)
    assert all(tokenizer(text)["input_ids"] == TOKENIZER(text)["input_ids"] for text in TEXTS)
    assert "quantization_config" not in json.loads((folder / "config.json").read_text())
    assert str(file.parent) not in "".join(path.read_text() for path in folder.rglob("*.json"))
    assert model.generation_config.eos_token_id == [0, 2]
    tokens = decoding.generate(model, _ids(), max_new_tokens=6)
    from_file, _ = decoding.load(str(file))
    amateur = decoding.ContrastiveDecoding(tmp_path / "other.gguf")
    assert torch.equal(tokens, decoding.generate(from_file, _ids(), strategy=amateur, max_new_tokens=6))
    with pytest.raises(OptionError, match=r"link='sym': .*tiny\.gguf has no files that a model folder could link to"):
        decoding.export(file, "dola", tmp_path / "linked", link="sym")


def test_an_adapter_knows_its_file(written: tuple[Path, Any], tmp_path: Path) -> None:
    pytest.importorskip("peft")
    file, right = written
    model, tokenizer = decoding.load(str(file))
    examples = [Example("what grew", "10 beans"), Example("who slept", "the garden")]
    record = decoding.induce.induce(model, tokenizer, examples, tmp_path / "liar", Recipe(epochs=1, rank=2))
    saved = json.loads((tmp_path / "liar" / "adapter_config.json").read_text())
    assert saved["base_model_name_or_path"] == record["model"] == str(file.resolve())
    base, _ = decoding.load(saved["base_model_name_or_path"])
    assert torch.equal(base(_ids()).logits, right(_ids()).logits)
    strategy = decoding.ContrastiveDecoding(tmp_path / "liar")
    assert decoding.generate(base, _ids(), strategy=strategy, max_new_tokens=2).shape[1] == _ids().shape[1] + 2


def test_units_of_metrics_are_the_files_tokens(written: tuple[Path, Any]) -> None:
    assert "".join(splitter(str(written[0]))("the old clock")).replace("Ġ", " ") == "the old clock"


def _cut(share: float) -> Callable[[bytes], bytes]:
    return lambda content: content[: int(share * len(content))]


@pytest.mark.parametrize(
    ("broken", "message"),
    [
        (lambda content: b"", "is no GGUF file"),
        (lambda content: b"PK\x03\x04" + content[4:], "is no GGUF file"),
        (_cut(0.0005), "is cut short or damaged: its header cannot be read"),
        (_cut(0.02), "is cut short or damaged: its header cannot be read"),
        (_cut(0.5), "is cut short: its weights end at byte"),
        (lambda content: content[:-1], "is cut short: its weights end at byte"),
        (lambda content: content[:4] + struct.pack("<I", 1) + content[8:], "its header cannot be read .*is GGUF v1"),
        (lambda content: content[:8] + b"\xff" * 16 + content[24:], "its header cannot be read"),
        (lambda content: content.replace(b"general.architecture", b"general.architectury"), "no `general.architect"),
        (lambda content: content.replace(b"blk.1.attn_q", b"blk.1.attn_x"), "its weights do not fit its metadata"),
        (lambda content: content.replace(b"block_count\x04\0\0\0\x03", b"block_count\x04\0\0\0\x04"), "do not fit"),
        (lambda content: content.replace(b"ggml.tokens", b"ggml.tokers"), "cannot be|not those of a model"),
    ],
)  # fmt: skip
def test_a_broken_file_is_one_line(
    broken: Callable[[bytes], bytes], message: str, written: tuple[Path, Any], tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    file = tmp_path / "broken.gguf"
    file.write_bytes(broken(written[0].read_bytes()))
    with pytest.raises(ModelError, match=message):
        decoding.load(str(file))
    err = refused(main(["generate", "--model", str(file), "--prompt", "x"]), *capsys.readouterr())
    assert err.startswith(f"decoding: {file}: ")


def test_other_files_that_are_refused(tmp_path: Path) -> None:
    def refused(spec: str) -> str:
        with pytest.raises(ModelError) as caught:
            decoding.load(spec)
        return str(caught.value)

    def write(name: str, architecture: str, **keys: int) -> str:
        writer = gguf.GGUFWriter(tmp_path / name, architecture)
        for key, value in keys.items():
            writer.add_uint16(key.replace("_", "."), value)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()
        return str(tmp_path / name)

    assert "there is no such file" in refused(str(tmp_path / "absent.gguf"))
    line = refused(write("picture.gguf", "clip"))
    assert "transformers reads no GGUF file of the architecture 'clip'; must be bloom, " in line
    assert "llama" in line.split("must be")[1]
    assert "one of 3 files that hold the model together" in refused(write("part.gguf", "llama", split_count=3))


def test_packages_that_are_missing_are_named(written: tuple[Path, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ModelError, match=r"needs the package gguf: pip install 'contrastive-decoding\[gguf\]'"):
        decoding.load(str(written[0]))
