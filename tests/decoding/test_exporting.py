"""``decoding export``: of which models it makes a folder, which files it writes, and what it refuses to write."""

from __future__ import annotations

import contextlib
import errno
import json
import multiprocessing
import os
import shutil
from pathlib import Path

import pytest
import torch
from command_results import refused
from exported_folders import EXPERT, generated, loaded, two_prompts
from tiny_models import tiny_model
from tiny_processors import RATE, save_llava, save_translator, save_whisper, tone, word_tokenizer, write_square
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoModelForSeq2SeqLM,
    AutoModelForSpeechSeq2Seq,
    AutoProcessor,
    AutoTokenizer,
    GenerationConfig,
)

import decoding
from decoding import exporting, files
from decoding.errors import DecodingError, ModelError, OptionError
from decoding.evals import cli, miniature
from decoding.models.builtin import BUILT_IN_ADAPTERS
from decoding.models.media import read_image
from decoding.strategies.registry import parse_strategy

pytestmark = pytest.mark.usefixtures("models_loaded_once")


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Folder that transformers copies the code of model folders to."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.mark.parametrize("link", [None, "hard", "sym"])
def test_files_are_copied_or_linked_as_asked(link, tmp_path):
    folder = decoding.export("expert", "contrastive-decoding:amateur=amateur", tmp_path / "out", link=link)
    for file, source in (
        (folder / "model.safetensors", EXPERT / "model.safetensors"),
        (folder / "amateur" / "model.safetensors", miniature.folder("amateur") / "model.safetensors"),
    ):
        assert file.is_symlink() == (link == "sym")
        assert file.samefile(source) == (link is not None)
        assert file.read_bytes() == source.read_bytes()
    for own in ("generation_config.json", "custom_generate/generate.py"):
        assert not (folder / own).is_symlink()
        assert (folder / own).stat().st_nlink == 1


def test_a_trainings_leavings_stay_behind_and_chat_templates_come(tmp_path):
    source = tmp_path / "trained"
    shutil.copytree(EXPERT, source)
    for name in ("optimizer.pt", "training_args.bin", "trainer_state.json", "pytorch_model.bin"):
        (source / name).write_text("{}")
    (source / "checkpoint-1").mkdir()
    (source / "chat_template.jinja").write_text("{{ messages }}")
    (source / "additional_chat_templates").mkdir()
    (source / "additional_chat_templates" / "rag.jinja").write_text("{{ documents }}")
    settings = GenerationConfig(do_sample=True, temperature=0.7, top_p=0.9, num_beams=2, use_cache=False, min_length=1)
    settings.save_pretrained(source)
    folder = decoding.export(source, decoding.DoLa(layers=[1, 2]), tmp_path / "out")
    assert sorted(str(file.relative_to(folder)) for file in folder.rglob("*") if file.is_file()) == [
        "README.md",
        "additional_chat_templates/rag.jinja",
        "chat_template.jinja",
        "config.json",
        "custom_generate/generate.py",
        "custom_generate/requirements.txt",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    config = json.loads((folder / "generation_config.json").read_text())
    config.pop("transformers_version")
    dola = {"name": "dola", "layers": [1, 2], "alpha": 0.1, "divergence": "dola", "final_norm": False, "per_row": True}
    assert config == {"decoding_strategy": dola, "do_sample": False, "min_length": 1}


def test_an_amateur_that_is_an_adapter_asks_for_peft(tmp_path):
    folder = decoding.export("expert", "contrastive-decoding:amateur=induced", tmp_path / "out")
    code = folder / "custom_generate"
    assert "peft" in (code / "requirements.txt").read_text()
    assert "contrastive-decoding[lora]==" in (code / "generate.py").read_text()


@pytest.mark.parametrize("name", ["llama", "mamba", "t5"])
def test_architectures_whose_generation_config_came_from_the_model_config(name, tmp_path):
    """Such a config is what ``save_pretrained`` writes of a model that was never given one."""
    model = tiny_model(name)
    assert model.generation_config._from_model_config
    model.save_pretrained(tmp_path / name)
    AutoTokenizer.from_pretrained(EXPERT).save_pretrained(tmp_path / name)
    folder = decoding.export(tmp_path / name, "contrastive-search", tmp_path / "out", link="hard")
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    made = generated(auto.from_pretrained(folder, trust_remote_code=True), {"input_ids": ids})
    assert torch.equal(made, generated(model, {"input_ids": ids}, decoding.ContrastiveSearch()))
    assert not torch.equal(made, generated(model, {"input_ids": ids}))


def contents(folder):
    return {str(path.relative_to(folder)): path.is_file() and path.read_bytes() for path in folder.rglob("*")}


@pytest.mark.parametrize("before", [False, True])
def test_a_failed_export_leaves_everything_as_it_was(before, tmp_path, monkeypatch):
    if before:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "notes.txt").write_text("mine")
    was = contents(tmp_path)
    copied = []

    def full(source, target):
        if len(copied) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        copied.append(Path(target).write_bytes(b"half"))

    monkeypatch.setattr(shutil, "copyfile", full)
    with pytest.raises(OptionError, match=r"out'?: cannot be written .*No space left"):
        decoding.export("expert", "contrastive-search", tmp_path / "out", force=before)
    assert contents(tmp_path) == was
    with pytest.raises(ModelError):
        decoding.export("expert", "contrastive-decoding:amateur=./missing", tmp_path / "out", force=before)
    assert contents(tmp_path) == was


def test_what_came_into_the_folder_meanwhile_is_not_replaced_unasked(tmp_path, monkeypatch):
    out, tried = tmp_path / "out", exporting._try
    (tmp_path / ".out.export.left" / "new").mkdir(parents=True)  # by an export that was killed

    def meanwhile(*given):
        tried(*given)
        out.mkdir(exist_ok=True)
        (out / "thesis.txt").write_text("mine")

    monkeypatch.setattr(exporting, "_try", meanwhile)
    with pytest.raises(OptionError, match=r"is not empty; .*--force"):
        decoding.export("expert", "contrastive-search", out)
    assert contents(tmp_path) == {"out": False, "out/thesis.txt": b"mine"}
    decoding.export("expert", "contrastive-search", out, force=True)
    assert not (out / "thesis.txt").exists()


def test_hidden_folders_of_the_users_own_beside_it_stay(tmp_path):
    (tmp_path / ".out.previous" / "mine").mkdir(parents=True)
    decoding.export("expert", "contrastive-search", tmp_path / "out", link="sym")
    assert sorted(path.name for path in tmp_path.iterdir()) == [".out.previous", "out"]


def filled(folder):
    folder.mkdir()
    (folder / "notes.txt").write_text("mine")
    return folder


@pytest.mark.parametrize("renames", [0, 1])
def test_an_interruption_while_the_folder_is_replaced_loses_nothing(renames, tmp_path, monkeypatch):
    """Before the old folder has gone from its place, and between that and the new one's coming."""
    out, rename, done = filled(tmp_path / "out"), Path.rename, []

    def interrupted(path, target):
        if len(done) == renames:
            done.append(None)
            raise KeyboardInterrupt
        done.append(rename(path, target))

    monkeypatch.setattr(Path, "rename", interrupted)
    with pytest.raises(KeyboardInterrupt):
        decoding.export("expert", "contrastive-search", out, link="sym", force=True)
    assert contents(tmp_path) == {"out": False, "out/notes.txt": b"mine"}


def test_a_folder_that_takes_the_place_of_one_being_replaced_loses_neither(tmp_path, monkeypatch):
    out, rename = filled(tmp_path / "out"), Path.rename

    def quicker(path, target):
        if path.name == "new":
            out.mkdir()
            (out / "theirs.txt").write_text("theirs")
        return rename(path, target)

    monkeypatch.setattr(Path, "rename", quicker)
    with pytest.raises(OptionError, match="cannot be written"):
        decoding.export("expert", "contrastive-search", out, link="sym", force=True)
    (old,) = tmp_path.glob("out.old-*")
    assert contents(old) == {"notes.txt": b"mine"}
    assert contents(out) == {"theirs.txt": b"theirs"}


@pytest.mark.skipif(files.fcntl is None, reason="there are no locks")
def test_what_an_export_leaves_that_is_killed_while_the_old_folder_goes_is_removed_by_the_next(tmp_path):
    out = filled(tmp_path / "out")

    def killed():
        shutil.rmtree = lambda *_, **__: os._exit(9)
        with exporting._written(out, force=True) as (new, _):
            (new / "config.json").write_text("{}")

    process = multiprocessing.get_context("fork").Process(target=killed)
    process.start()
    process.join(60)
    assert process.exitcode == 9
    assert contents(out) == {"config.json": b"{}"}
    assert len(list(tmp_path.iterdir())) == 2
    decoding.export("expert", "contrastive-search", out, link="sym", force=True)
    assert list(tmp_path.iterdir()) == [out]


def test_a_folder_is_replaced_only_by_force_and_never_with_the_model_in_it(tmp_path, monkeypatch):
    out = tmp_path / "out"
    shutil.copytree(EXPERT, out / "source")
    with pytest.raises(OptionError, match=r"is not empty; .*--force"):
        decoding.export("expert", "contrastive-search", out)
    with pytest.raises(OptionError, match=r"holds .*source, which is exported"):
        decoding.export(out / "source", "contrastive-search", out, force=True)
    with contextlib.chdir(out / "source"), pytest.raises(OptionError, match="working or the home folder"):
        decoding.export("expert", "contrastive-search", out, force=True)
    decoding.export("expert", "contrastive-search", out, force=True)
    assert not (out / "source").exists()
    assert (out / "model.safetensors").is_file()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert decoding.export("expert", "contrastive-search", empty, link="sym") == empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "nucleus"], "strategy nucleus: cannot be exported"),
        (["--strategy", "dolla"], "did you mean dola"),
        (["--set", "topk=3"], "contrastive-search has no parameter 'topk'; did you mean top_k"),
        (["--set", "top_k=100000"], "top_k=100000: must be 1 to 2048, the size of the model's vocabulary"),
        (["--link", "soft"], "link='soft': must be hard or sym"),
        (["--model", "./nowhere"], "./nowhere: there is no such folder"),
        (["--strategy", "contrastive-decoding"], "contrastive-decoding needs amateur"),
        (["--strategy", f"contrastive-decoding:amateur={'x' * 300}"], "cannot be read ("),
        (["--strategy", "dola:layers=9"], "layer 9: LlamaForCausalLM has"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, tmp_path, capfd):
    assert message in refused(cli.main(["export", "--output", str(tmp_path / "out"), *arguments]), *capfd.readouterr())
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_folder_and_says_what_it_does(tmp_path, capfd):
    out = tmp_path / "out"
    assert cli.main(["export", "--set", "top_k=5", "--link", "sym", "--output", str(out)]) == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines()[0] == f"{out}: contrastive-search(penalty_alpha=0.6, top_k=5)"
    inputs = two_prompts()
    expected = generated(miniature.load("expert")[0], inputs, decoding.ContrastiveSearch(top_k=5))
    assert torch.equal(generated(loaded(out), inputs), expected)


def test_options_of_the_generation_config_are_written_beside_the_strategy(tmp_path, capfd):
    output = tmp_path / "out"
    arguments = ["export", "--model", "expert", "--strategy", "dola:layers=1,alpha=0", "--output", str(output)]
    assert cli.main([*arguments, "--generation-config", "repetition_penalty=1.2"]) == 0
    capfd.readouterr()
    assert json.loads((output / "generation_config.json").read_text())["repetition_penalty"] == 1.2
    inputs = two_prompts()
    expert = loaded(EXPERT)
    right = generated(expert, inputs, decoding.DoLa(layers=[1], alpha=0), repetition_penalty=1.2)
    assert generated(loaded(output), inputs).tolist() == right.tolist()
    assert generated(expert, inputs, decoding.DoLa(layers=[1], alpha=0)).tolist() != right.tolist()
    shutil.rmtree(output)
    assert cli.main([*arguments, "--generation-config", "min_p=0.2"]) == 2
    assert "min_p: has an effect with sampling alone, and dola has none" in capfd.readouterr().err
    assert cli.main([*arguments, "--generation-config", "drafts=expert"]) == 2
    assert "drafts='expert': the folder will hold no such model; must be prompt-lookup" in capfd.readouterr().err
    assert cli.main([*arguments, "--generation-config", "drafts=exit:9"]) == 2  # the model has 4 layers
    assert "drafts=exit:9: the model has 4 layers; must be exit:1 to exit:3" in capfd.readouterr().err
    assert not output.exists()


@pytest.mark.parametrize(
    ("place", "make"),
    [
        ("amateur", decoding.ContrastiveDecoding),
        ("tuned", lambda model: decoding.ProxyTuning(model, "amateur")),
        ("safe", decoding.SafeDecoding),
        ("terms-2", lambda model: decoding.WeightedContrast([("expert", 1), (model, -1)])),
    ],
)
def test_a_model_in_memory_is_refused(place, make, tmp_path):
    with pytest.raises(OptionError, match=rf"{place}=LlamaForCausalLM: is in memory .* give the folder"):
        decoding.export("expert", make(miniature.load("amateur")[0]), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_every_model_that_a_strategy_names_is_in_the_folder(tmp_path):
    terms = "1*expert - 0.3*amateur - 0.2*induced + 0.1*prompt:Once"
    folder = decoding.export("expert", f"weighted-contrast:terms={terms}", tmp_path / "out")
    for place, source in (("terms-2", miniature.folder("amateur")), ("terms-3", BUILT_IN_ADAPTERS["induced"])):
        weights = next(source.glob("*.safetensors"))
        assert (folder / place / weights.name).read_bytes() == weights.read_bytes()
    settings = json.loads((folder / "generation_config.json").read_text())["decoding_strategy"]
    assert [reader for reader, _, _ in settings["terms"]] == ["expert", "./terms-2", "./terms-3", {"text": "Once"}]
    assert "peft" in (folder / "custom_generate" / "requirements.txt").read_text()


def test_functions_are_not_exported(tmp_path):
    strategy = decoding.WeightedContrast("1*expert - 1*last-token", weight_by=lambda logits: logits["expert"][..., 0])
    with pytest.raises(OptionError, match=r"weight_by=.*cannot be written to a file"):
        decoding.export("expert", strategy, tmp_path / "out")


# --- models of images and of sound ------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["image-contrast:noise=300", "contrastive-search"])
def test_a_model_of_images_generates_with_its_strategy(strategy, tmp_path):
    source = save_llava(tmp_path / "llava")
    folder = decoding.export(source, strategy, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(folder)  # its files came along
    image = read_image(write_square(tmp_path / "red.png", (220, 40, 40)))
    inputs = dict(processor(images=[image], text="<image> w1 w2", return_tensors="pt"))
    exported = AutoModelForImageTextToText.from_pretrained(folder, trust_remote_code=True)
    plain, _ = decoding.load(source, "cpu")
    expected = decoding.generate(plain, **inputs, strategy=parse_strategy(strategy).strategy, max_new_tokens=5)
    assert torch.equal(exported.generate(**inputs, max_new_tokens=5), expected)


@pytest.mark.parametrize("strategy", ["audio-contrast:negatives=noise;silence,snr=0", "contrastive-search"])
def test_a_speech_recogniser_generates_with_its_strategy(strategy, tmp_path):
    source = save_whisper(tmp_path / "whisper")
    folder = decoding.export(source, strategy, tmp_path / "out")
    processor = AutoProcessor.from_pretrained(folder)
    features = processor(audio=tone(), sampling_rate=RATE, return_tensors="pt")["input_features"]
    exported = AutoModelForSpeechSeq2Seq.from_pretrained(folder, trust_remote_code=True)
    plain, _ = decoding.load(source, "cpu")
    expected = decoding.generate(plain, features, strategy=parse_strategy(strategy).strategy, max_new_tokens=5)
    assert torch.equal(
        exported.generate(features, max_new_tokens=5), expected
    )  # whose first parameter has another name
    assert torch.equal(exported.generate(input_features=features, max_new_tokens=5), expected)


@pytest.mark.parametrize(
    ("model", "strategy", "message"),
    [
        ("expert", "image-contrast", "expert: has no processor of images or sound"),
        ("llava", "audio-contrast", "LlavaProcessor, hears no sound"),
        ("whisper", "image-contrast", "WhisperProcessor, sees no images"),
        ("m2m_100", "source-contrast:source=none,language=w31", "give forced_bos_token_id=ID"),
    ],
)
def test_a_model_that_does_not_see_or_hear_is_refused(model, strategy, message, tmp_path):
    save = {"llava": save_llava, "whisper": save_whisper, "m2m_100": lambda folder: save_translator("m2m_100", folder)}
    source = save[model](tmp_path / model) if model in save else model
    with pytest.raises(DecodingError, match=message):
        decoding.export(source, strategy, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_a_translator_generates_with_another_source_and_language(tmp_path):
    source = save_translator("m2m_100", tmp_path / "m2m_100")
    language, other = (word_tokenizer().convert_tokens_to_ids(word) for word in ("w30", "w31"))
    given = f"source-contrast:source=w8 w9,language={other}"
    folder = decoding.export(source, given, tmp_path / "out", generation_config={"forced_bos_token_id": language})
    exported = AutoModelForSeq2SeqLM.from_pretrained(folder, trust_remote_code=True)
    inputs = word_tokenizer()("w1 w2 w3", return_tensors="pt", return_token_type_ids=False)
    tokenizer = word_tokenizer()
    strategy = decoding.SourceContrast("w8 w9", language=other, tokenizer=tokenizer)
    expected = decoding.generate(
        decoding.load(source, "cpu")[0], **inputs, strategy=strategy, forced_bos_token_id=language, max_new_tokens=5
    )
    assert expected[0, 1] == language
    assert torch.equal(exported.generate(**inputs, tokenizer=tokenizer, max_new_tokens=5), expected)
