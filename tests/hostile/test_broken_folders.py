"""Broken folders of models and adapters on the command line: one line on standard error, exit code 2."""

from __future__ import annotations

import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from decoding.evals import miniature
from decoding.evals.cli import main

WEIGHTS, ADAPTER = "model.safetensors", "adapter_model.safetensors"
Breaking = Callable[[Path], Any]


def _cut(name: str, share: float) -> Breaking:
    def cut(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(share * len(content))])

    return cut


def _put(name: str, content: str | bytes) -> Breaking:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder: (folder / name).write_bytes(data)


def _without(*names: str) -> Breaking:
    return lambda folder: [(folder / name).unlink() for name in names]


def _set(name: str, **values: Any) -> Breaking:
    def change(folder: Path) -> None:
        content = json.loads((folder / name).read_text()) | values
        (folder / name).write_text(json.dumps(content))

    return change


def _weights(name: str, change: Callable[[torch.Tensor], torch.Tensor]) -> Breaking:
    def write(folder: Path) -> None:
        tensors = {key: change(value).contiguous() for key, value in load_file(folder / name).items()}
        save_file(tensors, folder / name, metadata={"format": "pt"})

    return write


def _folder_instead_of(name: str) -> Breaking:
    def swap(folder: Path) -> None:
        (folder / name).unlink()
        (folder / name).mkdir()

    return swap


def _one_after_the_other(*steps: Breaking) -> Breaking:
    return lambda folder: [step(folder) for step in steps]


MODELS: dict[str, tuple[Breaking, str]] = {
    "weights-cut": (_cut(WEIGHTS, 0.5), "weights cannot be loaded"),
    "weights-cut-in-header": (_cut(WEIGHTS, 0.001), "weights cannot be loaded"),
    "weights-with-a-huge-header": (_put(WEIGHTS, b"\xff" * 7 + b"\x7f{}"), "weights cannot be loaded"),
    "weights-missing": (_without(WEIGHTS), "weights cannot be loaded"),
    "weights-a-folder": (_folder_instead_of(WEIGHTS), "weights cannot be loaded"),
    "weights-nan": (_weights(WEIGHTS, lambda weight: weight * torch.nan), "gave NaN logits at step 0"),
    "shard-missing": (
        _one_after_the_other(
            _without(WEIGHTS),
            _put("model.safetensors.index.json", '{"metadata": {}, "weight_map": {"lm_head.weight": "a.safetensors"}}'),
        ),
        "weights cannot be loaded",
    ),
    "pickle-of-something-else": (
        _one_after_the_other(_without(WEIGHTS), lambda folder: torch.save([print], folder / "pytorch_model.bin")),
        "weights cannot be loaded",
    ),
    "config-missing": (_without("config.json"), "no config.json"),
    "config-cut": (_cut("config.json", 0.5), "config.json cannot be read"),
    "config-null": (_put("config.json", "null"), "config.json cannot be read"),
    "config-binary": (_put("config.json", b"\x00\xff\xfe"), "config.json cannot be read"),
    "config-a-folder": (_folder_instead_of("config.json"), "no config.json"),
    "config-of-text": (_set("config.json", hidden_size="many"), "config.json cannot be read"),
    "config-without-layers": (_set("config.json", num_hidden_layers=-1), "num_hidden_layers -1"),
    "config-of-a-larger-model": (_set("config.json", num_hidden_layers=50), "weights do not fit its config.json"),
    "config-of-another-vocabulary": (_set("config.json", vocab_size=100), "weights"),
    "config-of-another-type": (_set("config.json", model_type="bert"), "bert"),
    "generation-config-cut": (_put("generation_config.json", '{"eos'), "generation_config.json cannot be read"),
    "generation-config-of-text": (_put("generation_config.json", '{"eos_token_id": "x"}'), "eos_token_id 'x'"),
    "tokenizer-missing": (_without("tokenizer.json", "tokenizer_config.json"), "tokenizer cannot be loaded"),
    "tokenizer-cut": (_cut("tokenizer.json", 0.5), "tokenizer cannot be loaded"),
    "tokenizer-config-cut": (_put("tokenizer_config.json", "{"), "tokenizer_config.json cannot be read"),
    "tokenizer-of-another-kind": (
        _put("tokenizer_config.json", '{"tokenizer_class": "BertTokenizer"}'),
        "tokenizer does not work",
    ),
    "empty": (lambda folder: [file.unlink() for file in folder.iterdir()], "no config.json"),
}  # fmt: skip
ADAPTERS: dict[str, tuple[Breaking, str]] = {
    "weights-cut": (_cut(ADAPTER, 0.5), "adapter cannot be loaded"),
    "weights-missing": (_without(ADAPTER), "adapter cannot be loaded"),
    "weights-nan": (_weights(ADAPTER, lambda weight: weight * torch.nan), "the amateur .* gave NaN logits"),
    "weights-of-another-model": (
        _weights(ADAPTER, lambda weight: torch.cat([weight, weight], -1)), "adapter cannot be loaded",
    ),
    "weights-under-other-names": (
        lambda folder: save_file({"other": torch.ones(2)}, folder / ADAPTER, metadata={"format": "pt"}),
        "adapter",
    ),
    "config-cut": (_cut("adapter_config.json", 0.5), "adapter cannot be loaded"),
    "config-null": (_put("adapter_config.json", "null"), "adapter cannot be loaded"),
    "config-missing": (_without("adapter_config.json"), "no config.json"),
    "config-of-no-module": (_set("adapter_config.json", target_modules=["nothing"]), "adapter cannot be loaded"),
    "config-of-another-rank": (_set("adapter_config.json", r=3), "adapter cannot be loaded"),
    "dora": (_set("adapter_config.json", use_dora=True), "adapter"),
    "another-kind": (_set("adapter_config.json", peft_type="IA3"), "adapter"),
    "changes-the-head": (_set("adapter_config.json", modules_to_save=["lm_head"]), "adapter"),
}  # fmt: skip


@pytest.fixture
def refused(capfd: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run ``decoding generate`` and give the line that it refuses with."""

    def run(*arguments: str) -> str:
        code = main(["generate", "--prompt", "Q: What does the owl eat?", "--max-new-tokens", "3", *arguments])
        out, error = capfd.readouterr()
        assert (code, out) == (2, ""), error
        assert len(error.splitlines()) == 1, error
        return error

    return run


@pytest.mark.parametrize("name", MODELS)
def test_a_broken_model(name: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    breaking, message = MODELS[name]
    folder = shutil.copytree(miniature.folder("amateur"), tmp_path / "model")
    breaking(folder)
    assert message in refused("--model", str(folder))


@pytest.mark.parametrize("name", ADAPTERS)
def test_a_broken_adapter(name: str, tmp_path: Path, refused: Callable[..., str]) -> None:
    pytest.importorskip("peft")
    breaking, message = ADAPTERS[name]
    folder = shutil.copytree(miniature.folder("induced"), tmp_path / "adapter")
    breaking(folder)
    line = refused("--model", "expert", "--strategy", "contrastive-decoding", "--set", f"amateur={folder}")
    assert re.search(message, line), line


def test_an_adapter_of_another_model(refused: Callable[..., str]) -> None:
    pytest.importorskip("peft")
    folder = str(miniature.folder("induced"))
    line = refused("--model", "amateur", "--strategy", "contrastive-decoding", "--set", f"amateur={folder}")
    assert "the adapter" in line


@pytest.mark.parametrize(
    "spec", ["/dev/null", "/", "", "  ", "a" * 5000, "~nobody-of-this-name/model", "a/b/c", "../nowhere", "a\x00b"]
)
def test_what_is_no_folder(spec: str, refused: Callable[..., str]) -> None:
    refused("--model", spec)


def test_the_tokenizer_of_another_model(tmp_path: Path, refused: Callable[..., str]) -> None:
    """Its tokens are past the vocabulary: on a GPU they would end the process."""
    folder = shutil.copytree(miniature.folder("amateur"), tmp_path / "model")
    tokenizer = json.loads((folder / "tokenizer.json").read_text())
    model = tokenizer["model"]
    if isinstance(model["vocab"], dict):
        model["vocab"] = {piece: index + 5000 for piece, index in model["vocab"].items()}
    else:
        model["vocab"] = [*([f"<{i}>", 0.0] for i in range(5000)), *model["vocab"]]
        model["unk_id"] = model.get("unk_id", 0) + 5000
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer))
    line = refused("--model", str(folder))
    assert "is not in the model's" in line or "tokenizer" in line


@pytest.fixture
def readable() -> Iterator[Path]:
    """A folder that every user may enter; those of pytest are its user's alone."""
    folder = Path(tempfile.mkdtemp())
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(not hasattr(os, "geteuid"), reason="needs users")
@pytest.mark.parametrize("name", ["", "config.json", WEIGHTS, "tokenizer.json"])
def test_what_may_not_be_read(name: str, readable: Path, refused: Callable[..., str]) -> None:
    folder = shutil.copytree(miniature.folder("amateur"), readable / "model")
    (folder / name).chmod(0)
    own = os.geteuid()
    try:
        if own == 0:
            os.seteuid(65534)  # root may read everything
        refused("--model", str(folder))
    finally:
        os.seteuid(own)
        (folder / name).chmod(0o755)
