"""Folders whose ``generate`` is a strategy, wherever and however they are loaded."""

from __future__ import annotations

import copy
import importlib.metadata
import json
import shutil
import sys
import threading

import pytest
import torch
from chat_tokenizers import INSTRUCTIONS
from exported_folders import EXPERT, NEW, PROMPT, generated, loaded, two_prompts
from opened_drafts import opened_drafts
from transformers import AutoTokenizer, GenerationConfig, pipeline
from transformers.generation.streamers import BaseStreamer

import decoding
from decoding.api import generate_with
from decoding.drafts.options import DraftOptions
from decoding.errors import ModelError, OptionError
from decoding.evals import miniature
from decoding.strategies.registry import STRATEGIES, parse_strategy

pytestmark = pytest.mark.usefixtures("models_loaded_once")  # by exports; models of exported folders are new


@pytest.fixture(autouse=True)
def modules(tmp_path, monkeypatch):
    """Folder that transformers copies the code of model folders to."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "modules"))


@pytest.fixture(scope="module")
def tokenizer():
    return AutoTokenizer.from_pretrained(EXPERT)


@pytest.fixture(scope="module")
def inputs():
    return two_prompts()


@pytest.fixture(scope="module")
def plain():
    """The expert, from its own folder."""
    return miniature.load("expert")[0]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    return decoding.export(EXPERT, "contrastive-search:top_k=5", tmp_path_factory.mktemp("export") / "searching")


@pytest.fixture(scope="module")
def searching(exported):
    """The model of that folder, for tests that leave it as it was."""
    return loaded(exported)


@pytest.fixture(scope="module")
def greedy(plain, inputs):
    return generated(plain, inputs)


@pytest.fixture(scope="module")
def with_adapters():
    """Another expert, on which strategies put their adapters."""
    return miniature.load("expert")[0]


@pytest.fixture(scope="module")
def expected(plain, inputs):
    return generated(plain, inputs, decoding.ContrastiveSearch(top_k=5))


# --- what an exported folder generates ------------------------------------------------------------------------------


def test_the_models_own_generate_is_the_strategy(searching, inputs, expected):
    assert torch.equal(generated(searching, inputs), expected)
    ids, config = inputs["input_ids"], GenerationConfig(max_new_tokens=NEW)
    assert torch.equal(searching.generate(ids, config, attention_mask=inputs["attention_mask"]), expected)
    output = generated(searching, inputs, return_dict_in_generate=True, output_scores=True)
    assert torch.equal(output.sequences, expected)
    assert (output.scores[0] > -torch.inf).sum(-1).tolist() == [5, 5]


def test_without_trust_it_is_the_model_as_it_was(exported, greedy, inputs, expected):
    model = loaded(exported, trust=False)
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


def test_a_streamer_gets_the_prompt_each_token_and_the_end(searching, tokenizer):
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    streamer = Recorder()
    sequence = searching.generate(ids, max_new_tokens=NEW, streamer=streamer)[0].tolist()
    prompt = ids.shape[1]
    assert streamer.parts == [sequence[:prompt], *([token] for token in sequence[prompt:])]
    assert streamer.ended == 1


def test_a_strategy_of_the_call_goes_before_the_folders(searching, plain, greedy, inputs):
    other = decoding.ContrastiveSearch(0.9, 3)
    right = generated(plain, inputs, other)
    assert torch.equal(generated(searching, inputs, custom_generate=other), right)
    assert torch.equal(generated(searching, inputs, other), right)
    assert torch.equal(generated(searching, inputs, top_k=3, penalty_alpha=0.9), right)
    config = GenerationConfig(max_new_tokens=NEW, decoding_strategy=None)
    assert torch.equal(searching.generate(**inputs, generation_config=config), greedy)
    assert torch.equal(generated(searching, inputs, decoding_strategy=None), greedy)
    assert torch.equal(decoding.generate(searching, **inputs, max_new_tokens=NEW, decoding_strategy=None), greedy)
    assert torch.equal(generate_with(parse_strategy("greedy"), searching, **inputs, max_new_tokens=NEW), greedy)
    processor = {"logits_processor": [other.logits_processor(searching, **inputs)], "num_beams": 2}
    beams = generated(searching, inputs, **processor, decoding_strategy=None)
    assert torch.equal(beams, generated(plain, inputs, **processor))
    per_call = {"name": "dola", "layers": [1, 2]}
    dola = GenerationConfig(max_new_tokens=NEW, decoding_strategy=per_call)
    assert torch.equal(
        searching.generate(**inputs, generation_config=dola), generated(plain, inputs, decoding.DoLa(layers=[1, 2]))
    )


def test_settings_of_a_call_leave_the_rest_as_it_was(searching, plain, inputs, tmp_path, tokenizer):
    config = GenerationConfig(max_new_tokens=NEW, decoding_strategy={"penalty_alpha": 0.9})
    expected = generated(plain, inputs, decoding.ContrastiveSearch(0.9, 5))
    assert torch.equal(searching.generate(**inputs, generation_config=config), expected)
    model = loaded(decoding.export("expert", "contrastive-decoding:amateur=amateur", tmp_path / "out"))
    tuned = decoding.ContrastiveDecoding(miniature.load("amateur")[0], beta=0.9, tokenizer=tokenizer)
    for settings, strategy in (
        ({"beta": 0.9}, tuned),
        ({"name": "contrastive-search"}, decoding.ContrastiveSearch()),
        ({"name": "lol", "amateur": "./amateur", "lower_layers": []}, decoding.LOL(tuned.amateur, [])),
    ):
        made = generated(model, inputs, decoding_strategy=settings)
        assert torch.equal(made, generated(plain, inputs, strategy))


def test_stop_strings_and_sampling_reach_the_strategy(searching, plain, inputs, tokenizer):
    strategy = decoding.ContrastiveSearch(top_k=5)
    stop = {"stop_strings": ["a "], "tokenizer": tokenizer}
    assert torch.equal(generated(searching, inputs, **stop), generated(plain, inputs, strategy, **stop))
    torch.manual_seed(3)
    drawn = generated(searching, inputs, do_sample=True)
    torch.manual_seed(3)
    assert torch.equal(drawn, generated(plain, inputs, strategy, do_sample=True))


@pytest.mark.parametrize("drafts", ["prompt-lookup", "exit:2"])
def test_a_folder_may_draft(drafts, tmp_path, inputs, expected):
    options = {"drafts": drafts, "draft_tokens": 3}
    folder = decoding.export(EXPERT, "contrastive-search:top_k=5", tmp_path / "drafting", generation_config=options)
    written = json.loads((folder / "generation_config.json").read_text())
    assert {name: written[name] for name in options} == options
    model = loaded(folder)
    with opened_drafts() as opened:
        assert torch.equal(generated(model, inputs), expected)
        assert torch.equal(model.generate(**inputs, generation_config=GenerationConfig(max_new_tokens=NEW)), expected)
        assert torch.equal(generated(model, inputs, draft_tokens=1), expected)
    assert opened == [DraftOptions(drafts, 3), DraftOptions(drafts, 3), DraftOptions(drafts, 1)]
    with opened_drafts() as opened:
        assert torch.equal(generated(model, inputs, drafts="none"), expected)
    assert opened == []


def test_a_client_chooses_who_drafts_but_no_files(searching, inputs, expected):
    """A server's clients send generation configs; a name in one would be loaded, perhaps from the hub."""
    with opened_drafts() as opened:
        assert torch.equal(generated(searching, inputs, drafts="prompt-lookup"), expected)
        assistant = miniature.load("amateur")[0]
        assert torch.equal(generated(searching, inputs, drafts=assistant), expected)
    assert opened == [DraftOptions("prompt-lookup", None), DraftOptions(assistant, None)]
    config = GenerationConfig(max_new_tokens=2, drafts=str(miniature.folder("amateur")))
    for call in ({"drafts": config.drafts}, {"generation_config": config}):
        with pytest.raises(OptionError, match=r"drafts='.*amateur': an exported model loads no other; pass the model"):
            searching.generate(**inputs, **call)


def test_what_would_leave_the_strategy_out_is_refused(searching, plain):
    ids = torch.tensor([[5, 6]])
    with pytest.raises(OptionError, match="num_beams"):
        searching.generate(ids, num_beams=2)
    with pytest.raises(OptionError, match="paged"):
        searching.generate(ids, cache_implementation="paged")
    with pytest.raises(OptionError, match="continuous batching would leave out"):
        searching.generate_batch([[5, 6]])
    other = copy.deepcopy(plain)  # transformers 5.17 leaves its attention paged
    assert other.init_continuous_batching() is not None  # other models are as before


@pytest.mark.parametrize(
    "spec",  # each kind of reader, alone and among several; tests/decoding/strategies/test_contract.py exports them all
    [
        "contrastive-decoding:amateur=prompt:Everybody says",
        "lol:amateur=induced,lower_layers=0.5,3,guidance=What is true.,refocus_weight=0.3",
        "contrastive-decoding:amateur=self:skip_layers=1-2;dropout=0.1,beta=0.8",
        "weighted-contrast:terms=1.2*expert - 0.3*amateur - 0.4*induced + .2*prompt:Once upon,when=entropy>quantile .3",
    ],
)
def test_every_strategy_travels_in_a_folder_that_can_be_moved(spec, with_adapters, greedy, inputs, tokenizer, tmp_path):
    expected = generated(with_adapters, inputs, parse_strategy(spec).with_tokenizer(tokenizer).strategy)
    assert not torch.equal(expected, greedy)
    folder = decoding.export("expert", spec, tmp_path / "here")
    folder = folder.rename(tmp_path / "there")
    settings = json.loads((folder / "generation_config.json").read_text())["decoding_strategy"]
    assert str(EXPERT.parent) not in json.dumps(settings)
    assert torch.equal(generated(loaded(folder), inputs), expected)


def test_the_settings_outlive_saving_and_loading(searching, tmp_path):
    config = searching.generation_config
    config.save_pretrained(tmp_path)
    assert GenerationConfig.from_pretrained(tmp_path).decoding_strategy == {
        "name": "contrastive-search",
        "penalty_alpha": 0.6,
        "top_k": 5,
        "max_history": None,
    }
    assert config.do_sample is False


def test_threads_that_meet_at_the_first_call_get_the_same(tmp_path, with_adapters, inputs, tokenizer):
    """The first call attaches the adapter and loads the tokenizer."""
    spec = "contrastive-decoding:amateur=induced"
    expected = generated(with_adapters, inputs, parse_strategy(spec).with_tokenizer(tokenizer).strategy)
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
    assert all(torch.equal(tokens, expected) for tokens in made)


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


# --- what an exported folder refuses --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"name": "contrastive-serch"}, "unknown strategy 'contrastive-serch'; did you mean contrastive-search"),
        ({"name": "greedy"}, "unknown strategy 'greedy'"),
        ({"name": "contrastive-search", "topk": 4}, "has no parameter 'topk'; did you mean top_k"),
        ({"name": "contrastive-search", "top_k": "4"}, "top_k='4'"),
        ({"name": "lol", "lower_layers": [1]}, "missing .*amateur"),
        ({"name": "contrastive-decoding", "amateur": "/etc"}, "is not the model's .None.; export the model again"),
        ("contrastive-search", "must be a name and parameters"),
        ({"name": "lol", "amateur": "./amateur", "lower_layers": [1]}, "amateur='./amateur' is not the model's"),
        ({"name": "contrastive-decoding", "amateur": ["/etc"]}, r"amateur=\['/etc'\] is not the model's"),
        ({"name": "proxy-tuning", "tuned": "/etc", "untuned": "last-token"}, "tuned='/etc' is not the model's"),
        ({"name": "proxy-tuning", "tuned": "self:dropout=.1", "untuned": "a/b"}, "untuned='a/b' is not the model's"),
        ({"name": "safe-decoding", "safe": "./../other"}, "safe='./../other' is not the model's"),
        ({"name": "weighted-contrast", "terms": "1*expert - 1*/etc"}, "terms-2='/etc' is not the model's"),
        ({"name": "weighted-contrast", "terms": [["/etc", 1.0], ["expert", 1.0]]}, "terms-1='/etc' is not the model's"),
        ({"name": "weighted-contrast", "terms": 3}, "terms=3: must be readers with weights"),
    ],
)
def test_settings_of_a_call_are_checked(searching, settings, message):
    """A server's clients send generation configs: no client may name files."""
    config = GenerationConfig(max_new_tokens=2, decoding_strategy=settings)
    with pytest.raises(OptionError, match=message):
        searching.generate(torch.tensor([[5, 6]]), generation_config=config)


def test_a_client_may_choose_other_texts_and_parts_of_the_model(tmp_path, plain, inputs, tokenizer):
    """What names no file: a negative prompt is most often a request's own. Nor does its text become a model's name."""
    model = loaded(decoding.export("expert", "guidance:negative=Lie.", tmp_path / "out"))
    for settings in (
        {"negative": str(miniature.folder("amateur")), "scale": 2.0},
        {"negative": "./amateur"},
        {"negative": {"text": "Everybody says"}},
        {"name": "contrastive-decoding", "amateur": "self:skip_layers=1"},
        {"name": "contrastive-decoding", "amateur": {"text": "Everybody says"}},
        {"name": "weighted-contrast", "terms": "1.5*expert - 0.5*instead:Everybody says"},
    ):
        spec = {"name": "guidance", "negative": "Lie.", **settings}
        spec = spec if spec["name"] == "guidance" else settings
        parameters = {name: value for name, value in spec.items() if name != "name"}
        for name, value in parameters.items():
            parameters[name] = decoding.Prompt(value["text"]) if isinstance(value, dict) else value
        strategy = STRATEGIES[spec["name"]](**parameters).with_tokenizer(tokenizer)
        config = GenerationConfig(max_new_tokens=NEW, decoding_strategy=settings)
        made = model.generate(**inputs, generation_config=config)
        assert torch.equal(made, generated(plain, inputs, strategy)), settings
    (_, reader) = decoding.Guidance(str(miniature.folder("amateur")), tokenizer=tokenizer).readers(plain, 1)
    assert reader.model is None
    assert reader.prompt == [tokenizer(str(miniature.folder("amateur")))["input_ids"]]


def test_a_client_may_use_the_exported_models_in_another_strategy(tmp_path, inputs):
    folder = decoding.export("expert", "proxy-tuning:tuned=induced,untuned=amateur", tmp_path / "out")
    model, terms = loaded(folder), [["expert", 1.0], ["./tuned", 1.0], ["./untuned", -1.0]]
    settings = {"name": "weighted-contrast", "terms": terms, "alpha": None}
    assert torch.equal(generated(model, inputs, decoding_strategy=settings), generated(model, inputs))
    with pytest.raises(OptionError, match=r"terms-1='amateur' is not the model's \('./tuned' or './untuned'\)"):
        generated(model, inputs, decoding_strategy={**settings, "terms": [["amateur", 1.0]]})


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


def test_the_context_of_a_chat_is_its_system_message(tmp_path, plain, tokenizer):
    """Without a contrast (alpha=0) the text is the model's own after a chat with the context."""
    shutil.copytree(EXPERT, tmp_path / "chatting")
    chatting = copy.deepcopy(tokenizer)
    chatting.chat_template = INSTRUCTIONS
    chatting.save_pretrained(tmp_path / "chatting")
    context = "The Fermar bear eats honey."
    folder = decoding.export(tmp_path / "chatting", decoding.ContextAware(context, alpha=0.0), tmp_path / "aware")
    writer = pipeline("text-generation", model=str(folder), trust_remote_code=True, dtype=torch.float32)
    question = [{"role": "user", "content": "What does the Fermar bear eat?"}]
    answer = writer(question, max_new_tokens=NEW)[0]["generated_text"][-1]["content"]
    with_context = chatting.apply_chat_template(
        [{"role": "system", "content": context}, *question],
        add_generation_prompt=True, return_dict=True, return_tensors="pt",
    )  # fmt: skip
    right = plain.generate(**with_context, max_new_tokens=NEW, do_sample=False)
    assert answer == tokenizer.decode(right[0, with_context["input_ids"].shape[1] :], skip_special_tokens=True)
