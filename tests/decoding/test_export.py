"""``decoding export``: folders whose ``generate`` is a strategy, wherever and however they are loaded."""

from __future__ import annotations

import contextlib
import errno
import importlib.metadata
import json
import shutil
import sys
import threading
from pathlib import Path

import pytest
import torch
from tiny_models import tiny_model
from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer, GenerationConfig, pipeline
from transformers.generation.streamers import BaseStreamer

import decoding
from decoding.errors import ModelError, OptionError
from decoding.evals import cli, miniature
from decoding.registry import named

NEW = 12
PROMPT = miniature.prompts()[0]
EXPERT = miniature.folder("expert")


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Where transformers copies the code of model folders to."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EXPERT)


@pytest.fixture(scope="module")
def inputs(tokenizer):
    encoded = tokenizer([PROMPT, "Long ago"], return_tensors="pt", padding=True)
    return {name: encoded[name] for name in ("input_ids", "attention_mask")}


@pytest.fixture(scope="module")
def plain():
    """The expert, from its own folder."""
    return miniature.load("expert")[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return decoding.export(EXPERT, "contrastive-search:top_k=5", tmp_path_factory.mktemp("export") / "searching")


def loaded(folder, trust=True):
    return AutoModelForCausalLM.from_pretrained(folder, trust_remote_code=trust, dtype=torch.float32).eval()


def generated(model, inputs, strategy=None, **options):
    """Tokens of a strategy, or of the model's own ``generate``."""
    if strategy is None:
        return model.generate(**inputs, max_new_tokens=NEW, **options)
    return decoding.generate(model, **inputs, max_new_tokens=NEW, strategy=strategy, **options)


@pytest.fixture(scope="module")
def expected(plain, inputs):
    return generated(plain, inputs, decoding.ContrastiveSearch(top_k=5))


# --- what an exported folder generates ------------------------------------------------------------------------------


def test_the_models_own_generate_is_the_strategy(exported, plain, inputs, expected):
    model = loaded(exported)
    assert torch.equal(generated(model, inputs), expected)
    ids, config = inputs["input_ids"], GenerationConfig(max_new_tokens=NEW)
    assert torch.equal(model.generate(ids, config, attention_mask=inputs["attention_mask"]), expected)
    output = generated(model, inputs, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(output.sequences, expected)
    assert (output.scores[0] > -torch.inf).sum(-1).tolist() == [5, 5]


def test_without_trust_it_is_the_model_as_it_was(exported, plain, inputs, expected):
    model = loaded(exported, trust=False)
    greedy = generated(plain, inputs)
    assert torch.equal(generated(model, inputs), greedy)
    assert not torch.equal(greedy, expected)
    # decoding.generate needs no foreign code to be run
    assert torch.equal(decoding.generate(model, **inputs, max_new_tokens=NEW), expected)


def test_a_pipeline_writes_the_strategys_text(exported, plain, tokenizer):
    writer = pipeline("text-generation", model=str(exported), trust_remote_code=True, dtype=torch.float32)
    ids = {"input_ids": tokenizer(PROMPT, return_tensors="pt")["input_ids"]}
    for options, strategy in (
        ({}, decoding.ContrastiveSearch(top_k=5)),
        ({"penalty_alpha": 0.2, "top_k": 3}, decoding.ContrastiveSearch(0.2, 3)),
    ):
        text = writer(PROMPT, max_new_tokens=NEW, **options)[0]["generated_text"]
        assert text == tokenizer.decode(generated(plain, ids, strategy)[0], skip_special_tokens=True)


class Recorder(BaseStreamer):
    """Keeps what a streamer is given."""

    def __init__(self):
        self.parts = []
        self.ended = 0

    def put(self, value):
        self.parts.append(value.reshape(-1).tolist())

    def end(self):
        self.ended += 1


def test_a_streamer_gets_the_prompt_each_token_and_the_end(exported, tokenizer):
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    streamer = Recorder()
    sequence = loaded(exported).generate(ids, max_new_tokens=NEW, streamer=streamer)[0].tolist()
    prompt = ids.shape[1]
    assert streamer.parts == [sequence[:prompt], *([token] for token in sequence[prompt:])]
    assert streamer.ended == 1


def test_a_strategy_of_the_call_goes_before_the_folders(exported, plain, inputs):
    model = loaded(exported)
    other = decoding.ContrastiveSearch(0.9, 3)
    assert torch.equal(generated(model, inputs, custom_generate=other), generated(plain, inputs, other))
    assert torch.equal(generated(model, inputs, other), generated(plain, inputs, other))
    assert torch.equal(generated(model, inputs, top_k=3, penalty_alpha=0.9), generated(plain, inputs, other))
    greedy = generated(plain, inputs)
    config = GenerationConfig(max_new_tokens=NEW, decoding_strategy=None)
    assert torch.equal(model.generate(**inputs, generation_config=config), greedy)
    assert torch.equal(generated(model, inputs, decoding_strategy=None), greedy)
    assert torch.equal(decoding.generate(model, **inputs, max_new_tokens=NEW, decoding_strategy=None), greedy)
    assert torch.equal(named("greedy").generate(model, **inputs, max_new_tokens=NEW), greedy)
    processor = {"logits_processor": [other.logits_processor(model, **inputs)], "num_beams": 2}
    beams = generated(model, inputs, **processor, decoding_strategy=None)
    assert torch.equal(beams, generated(plain, inputs, **processor))
    per_call = {"name": "dola", "layers": [1, 2]}
    dola = GenerationConfig(max_new_tokens=NEW, decoding_strategy=per_call)
    assert torch.equal(
        model.generate(**inputs, generation_config=dola), generated(plain, inputs, decoding.DoLa(layers=[1, 2]))
    )


def test_settings_of_a_call_leave_the_rest_as_it_was(exported, plain, inputs, tmp_path, tokenizer):
    config = GenerationConfig(max_new_tokens=NEW, decoding_strategy={"penalty_alpha": 0.9})
    expected = generated(plain, inputs, decoding.ContrastiveSearch(0.9, 5))
    assert torch.equal(loaded(exported).generate(**inputs, generation_config=config), expected)
    model = loaded(decoding.export("expert", "contrastive-decoding:amateur=amateur", tmp_path / "out"))
    tuned = decoding.ContrastiveDecoding(miniature.load("amateur")[0], beta=0.9, tokenizer=tokenizer)
    for settings, strategy in (
        ({"beta": 0.9}, tuned),
        ({"name": "contrastive-search"}, decoding.ContrastiveSearch()),
        ({"name": "lol", "amateur": "./amateur", "lower_layers": []}, decoding.LOL(tuned.amateur, [])),
    ):
        made = generated(model, inputs, decoding_strategy=settings)
        assert torch.equal(made, generated(plain, inputs, strategy))


def test_stop_strings_and_sampling_reach_the_strategy(exported, plain, inputs, tokenizer):
    model, strategy = loaded(exported), decoding.ContrastiveSearch(top_k=5)
    stop = {"stop_strings": ["a "], "tokenizer": tokenizer}
    assert torch.equal(generated(model, inputs, **stop), generated(plain, inputs, strategy, **stop))
    torch.manual_seed(3)
    drawn = generated(model, inputs, do_sample=True)
    torch.manual_seed(3)
    assert torch.equal(drawn, generated(plain, inputs, strategy, do_sample=True))


def test_what_would_leave_the_strategy_out_is_refused(exported, plain):
    model = loaded(exported)
    ids = torch.tensor([[5, 6]])
    with pytest.raises(OptionError, match="num_beams"):
        model.generate(ids, num_beams=2)
    with pytest.raises(OptionError, match="paged"):
        model.generate(ids, cache_implementation="paged")
    with pytest.raises(OptionError, match="continuous batching would leave out"):
        model.generate_batch([[5, 6]])
    assert plain.init_continuous_batching() is not None  # other models are as before


@pytest.mark.parametrize(
    "spec",
    [
        "contrastive-decoding:amateur=amateur",
        "contrastive-decoding:amateur=induced,form=log_probs",
        "contrastive-decoding:amateur=prompt:Everybody says",
        "lol:amateur=induced,lower_layers=0.5,3,guidance=What is true.,refocus_weight=0.3",
        "context-aware:context=In the encyclopaedia it stands that",
        "dola:layers=1,2,3",
    ],
)
def test_every_strategy_travels_in_a_folder_that_can_be_moved(spec, plain, inputs, tokenizer, tmp_path):
    expert = miniature.load("expert")[0]  # adapters are put on it
    expected = generated(expert, inputs, named(spec).with_tokenizer(tokenizer).how)
    assert not torch.equal(expected, generated(plain, inputs))
    folder = decoding.export("expert", spec, tmp_path / "here")
    folder = folder.rename(tmp_path / "there")
    settings = json.loads((folder / "generation_config.json").read_text())["decoding_strategy"]
    assert str(EXPERT.parent) not in json.dumps(settings)
    assert torch.equal(generated(loaded(folder), inputs), expected)


@pytest.mark.parametrize("name", ["llama", "mamba", "t5"])
def test_architectures_whose_generation_config_came_from_the_model_config(name, tokenizer, tmp_path):
    """As ``save_pretrained`` of a model that was never given one writes it."""
    model = tiny_model(name)
    assert model.generation_config._from_model_config
    model.save_pretrained(tmp_path / name)
    tokenizer.save_pretrained(tmp_path / name)
    folder = decoding.export(tmp_path / name, "contrastive-search", tmp_path / "out", link="hard")
    auto = AutoModelForSeq2SeqLM if model.config.is_encoder_decoder else AutoModelForCausalLM
    ids = torch.randint(3, 100, (2, 9), generator=torch.Generator().manual_seed(1))
    made = generated(auto.from_pretrained(folder, trust_remote_code=True), {"input_ids": ids})
    assert torch.equal(made, generated(model, {"input_ids": ids}, decoding.ContrastiveSearch()))
    assert not torch.equal(made, generated(model, {"input_ids": ids}))


def test_the_settings_outlive_saving_and_loading(exported, tmp_path):
    config = loaded(exported).generation_config
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).decoding_strategy == {
        "name": "contrastive-search",
        "penalty_alpha": 0.6,
        "top_k": 5,
        "max_history": None,
    }
    assert config.do_sample is False


def test_threads_that_meet_at_the_first_call_get_the_same(tmp_path, inputs, tokenizer):
    """The first call attaches the adapter and loads the tokenizer."""
    spec = "contrastive-decoding:amateur=induced"
    expected = generated(miniature.load("expert")[0], inputs, named(spec).with_tokenizer(tokenizer).how)
    model = loaded(decoding.export("expert", spec, tmp_path / "induced"))
    start, made = threading.Barrier(3), []

    def work():
        start.wait()
        made.append(generated(model, inputs))

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(made) == 3
    assert all(torch.equal(each, expected) for each in made)


def test_a_model_on_the_hub_brings_its_amateur(tmp_path, inputs, monkeypatch):
    """From the hub's cache, as it is after a download: names lead to snapshots of a commit."""
    spec, commit = "contrastive-decoding:amateur=amateur", "0" * 40
    repository = tmp_path / "cache" / "models--someone--searching"
    folder = decoding.export("expert", spec, repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    expected = generated(loaded(folder), inputs)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    model = loaded("someone/searching")
    assert torch.equal(generated(model, inputs), expected)
    again = decoding.export("someone/searching", "dola", tmp_path / "dola", link="hard")
    assert generated(loaded(again), inputs).shape[1] > inputs["input_ids"].shape[1]


# --- what is written ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("link", [None, "hard", "sym"])
def test_files_are_copied_or_linked_as_asked(link, tmp_path, inputs):
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
    assert sorted(str(each.relative_to(folder)) for each in folder.rglob("*") if each.is_file()) == [
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


def contents(folder):
    return {str(each.relative_to(folder)): each.is_file() and each.read_bytes() for each in folder.rglob("*")}


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
    assert [each.name for each in tmp_path.iterdir()] == ["out"]
    empty = tmp_path / "empty"
    empty.mkdir()
    assert decoding.export("expert", "contrastive-search", empty, link="sym") == empty


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "nucleus"], "strategy nucleus: is none of this library"),
        (["--strategy", "dolla"], "did you mean dola"),
        (["--set", "topk=3"], "contrastive-search has no parameter 'topk'; did you mean top_k"),
        (["--set", "top_k=100000"], "top_k=100000: the model's vocabulary has"),
        (["--link", "soft"], "link='soft': accepted are hard, sym"),
        (["--model", "./nowhere"], "./nowhere: there is no such folder"),
        (["--strategy", "contrastive-decoding"], "contrastive-decoding needs amateur"),
        (["--strategy", "dola:layers=9"], "layer 9: LlamaForCausalLM has"),
    ],
)
def test_bad_input_is_one_line_and_nothing_is_written(arguments, message, tmp_path, capfd):
    assert cli.main(["export", "--output", str(tmp_path / "out"), *arguments]) == 2
    printed = capfd.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("decoding: ")
    assert printed.err.count("\n") == 1
    assert message in printed.err
    assert list(tmp_path.iterdir()) == []


def test_the_command_writes_the_folder_and_says_what_it_does(tmp_path, inputs, expected, capfd):
    out = tmp_path / "out"
    assert cli.main(["export", "--set", "top_k=5", "--link", "sym", "--output", str(out)]) == 0
    printed = capfd.readouterr()
    assert printed.out.splitlines()[0] == f"{out}: contrastive-search(penalty_alpha=0.6, top_k=5)"
    assert torch.equal(generated(loaded(out), inputs), expected)


def test_an_amateur_in_memory_is_refused(plain, tmp_path):
    with pytest.raises(OptionError, match=r"in memory .* give the folder"):
        decoding.export("expert", decoding.ContrastiveDecoding(miniature.load("amateur")[0]), tmp_path / "out")


# --- what an exported folder refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "contrastive-serch"}, "unknown strategy 'contrastive-serch'; did you mean contrastive-search"),
        ({"name": "greedy"}, "unknown strategy 'greedy'"),
        ({"name": "contrastive-search", "topk": 4}, "has no parameter 'topk'; did you mean top_k"),
        ({"name": "contrastive-search", "top_k": "4"}, "top_k='4'"),
        ({"name": "lol", "lower_layers": [1]}, "missing .*amateur"),
        ({"name": "contrastive-decoding", "amateur": "/etc"}, "another one than the model's .None.; export the model"),
        ("contrastive-search", "accepted are a name and parameters"),
    ],
)
def test_settings_of_a_call_are_checked(exported, settings, message):
    """A server's clients send generation configs: no client may name files."""
    config = GenerationConfig(max_new_tokens=2, decoding_strategy=settings)
    with pytest.raises(OptionError, match=message):
        loaded(exported).generate(torch.tensor([[5, 6]]), generation_config=config)


def test_a_missing_amateur_is_named(tmp_path):
    folder = decoding.export("expert", "contrastive-decoding:amateur=amateur", tmp_path / "out")
    model = loaded(folder)
    shutil.rmtree(folder / "amateur")
    with pytest.raises(ModelError, match=r"its amateur is missing, the folder .*out/amateur"):
        model.generate(torch.tensor([[5, 6]]))


def test_a_package_that_is_missing_or_does_not_fit_is_one_line_that_says_how_to_install_it(
    exported, tmp_path, monkeypatch
):
    install = r'pip install "contrastive-decoding==0\.1\.\*"$'
    folders = [tmp_path / f"copy{i}" for i in range(3)]
    for folder in folders:  # a name of its own each: transformers keeps modules that it has imported
        shutil.copytree(exported, folder)
    with monkeypatch.context() as patched:
        patched.setattr(decoding, "__version__", "0.2.0")
        with pytest.raises(ImportError, match=rf"^this model .* 0\.1 \(0\.2\.0 is installed\): {install}"):
            loaded(folders[0])
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules, "decoding", None)
        with pytest.raises(ImportError, match=rf"^this model .* 0\.1 \(.*decoding.*\): {install}"):
            loaded(folders[1])
    version = importlib.metadata.version

    def uninstalled(name):
        if name == "contrastive-decoding":
            raise importlib.metadata.PackageNotFoundError(name)
        return version(name)

    monkeypatch.setattr(importlib.metadata, "version", uninstalled)
    with pytest.raises(ImportError, match=rf"contrastive-decoding>=0\.1  # {install.removesuffix('$')}"):
        loaded(folders[2])  # transformers' own check comes first and shows the line of requirements.txt
