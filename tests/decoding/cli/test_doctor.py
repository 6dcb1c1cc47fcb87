"""``decoding doctor``: what it tells of a model, and why something is refused."""

import json
import re

import pytest
import torch
from tiny_models import tiny_model
from transformers import GPT2Config, GPT2LMHeadModel
from word_models import CONTEXT, WORDS, save

import decoding
from decoding.capabilities.exit_quality import ExitQuality
from decoding.cli import diagnosis
from decoding.cli.app import run
from decoding.cli.diagnosis import diagnose
from decoding.kernels import OPERATIONS
from decoding.kernels.few_rows import why_not_compiled

NO_COMPILER = {"no compiled products because"} if why_not_compiled() else set()  # told beside the forms

pytestmark = pytest.mark.usefixtures("models_loaded_once")


def test_doctor_reports_how_a_model_is_served(tiny, capfd):
    assert run(["doctor", "--model", tiny, "--json"]) == 0
    out, err = capfd.readouterr()
    report = json.loads(out)
    assert err == ""
    assert report["branching"] == "shared prefix"
    assert report["head"] == "head"
    assert report["separable head"] is report["early exits"] is True
    assert (report["layers"], report["context"], report["vocabulary"]) == (2, CONTEXT, len(WORDS))
    assert report["torch"] == torch.__version__
    assert report["drafts"] is True
    form = "triton" if report["device"].startswith("cuda") else "torch"
    assert report["degeneration penalty"] == report["selection"] == form
    assert run(["doctor", "--model", tiny]) == 0
    lines = capfd.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 80
    assert any(re.fullmatch(r"branching +shared prefix *", line) for line in lines)


def test_doctor_says_why_a_model_reads_no_drafts(tiny):
    report = diagnose("mamba", tiny_model("mamba"), decoding.load(tiny, "cpu")[1])
    assert report["drafts"] is False
    assert report["no drafts because"].startswith("MambaForCausalLM cannot read drafts: it has no shared prefix (")


def test_doctor_says_which_drafts_an_encoder_decoder_reads(tiny):
    report = diagnose("t5", tiny_model("t5"), decoding.load(tiny, "cpu")[1])
    assert (report["drafts"], report["drafts are"]) == (
        True,
        "of prompt lookup, for one row, without contrastive search",
    )


def test_doctor_says_why_a_model_is_refused(tiny, capfd, monkeypatch):
    def refuse(*arguments, **options):
        raise RuntimeError("its state cannot\nbe branched")

    monkeypatch.setattr("decoding.cli.diagnosis.open_stream", refuse)
    assert run(["doctor", "--model", tiny, "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert (report["branching"], report["branching because"]) == ("refused", "RuntimeError: its state cannot")


def test_doctor_says_why_a_kernel_cannot_run(tiny, capfd, monkeypatch):
    monkeypatch.setenv("DECODING_KERNELS", "triton")
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    assert run(["doctor", "--model", tiny, "--device", "cpu", "--json"]) == 0
    report = json.loads(capfd.readouterr().out)
    assert report["branching"] == "shared prefix"
    assert report["selection"].startswith("refused: DECODING_KERNELS='triton' cannot run here")


def test_doctor_says_why_products_are_not_compiled(tiny, capfd, monkeypatch):
    monkeypatch.setattr(diagnosis, "why_not_compiled", lambda: "no C compiler is found")
    assert run(["doctor", "--model", tiny, "--device", "cpu", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["no compiled products because"] == "no C compiler is found"


def test_doctor_and_generate_serve_learned_positions(tmp_path, capfd):
    config = GPT2Config(vocab_size=len(WORDS), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    config.eos_token_id = config.bos_token_id = 1
    folder = save(GPT2LMHeadModel(config), tmp_path)
    capfd.readouterr()  # save_pretrained has a progress bar
    assert run(["doctor", "--model", folder]) == 0
    assert run(["generate", "--model", folder, "--prompt", "w1 w2"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize(
    "own", [{"return_dict_in_generate": True, "output_scores": True}, {"num_beams": 3, "num_return_sequences": 3}]
)
def test_what_a_models_own_generation_config_asks_for_changes_no_fact(tiny, own):
    tokenizer = decoding.load(tiny, "cpu")[1]
    right = diagnose("llama", tiny_model("llama"), tokenizer)
    model = tiny_model("llama")
    model.generation_config.update(**own)
    assert diagnose("llama", model, tokenizer) == right
    assert right["branching"] == "shared prefix"


@pytest.mark.parametrize(
    ("probe", "what", "lines"),
    [
        ("exit_quality", "exits", {"nats per token of exits"}),
        ("why_not_chunked", "chunked prefill", {"chunked prefill"}),
        ("layers_of", "cache", {"cache"}),
        ("branching_of", "branching with left padding", set()),
        ("_drafts", "drafts", {"drafts"}),
        ("choose", "kernels", set(OPERATIONS)),
        ("measured_forms", "linear layers", {"linear layers of 4 rows"} | NO_COMPILER),
    ],
)
def test_a_fact_that_cannot_be_found_hides_no_other(probe, what, lines, tiny, monkeypatch):
    def fail(*_):
        raise RuntimeError("not today")

    tokenizer = decoding.load(tiny, "cpu")[1]
    right = diagnose("llama", tiny_model("llama"), tokenizer)
    assert right.keys() >= lines
    monkeypatch.setattr(diagnosis, probe, fail)
    found = {name: value for name, value in right.items() if name not in lines}
    assert diagnose("llama", tiny_model("llama"), tokenizer) == {
        **found,
        f"{what} unknown because": "RuntimeError: not today",
    }


@pytest.mark.parametrize("eos_token_id", [50256, [1, 50256], -1])
def test_a_token_that_the_vocabulary_has_not_ends_no_text_of_the_exits(eos_token_id, tiny):
    model = tiny_model("gpt2")
    model.generation_config.eos_token_id = eos_token_id
    assert "nats per token of exits" in diagnose("gpt2", model, decoding.load(tiny, "cpu")[1])


@pytest.mark.parametrize(("normed", "told"), [((5.0, 5.0), "none do"), ((7.0, 5.0), "2 do"), ((7.0, 8.0), "2, 4 do")])
def test_exits_that_stay_noise_with_the_final_norm_are_named(tiny, monkeypatch, normed, told):
    quality = ExitQuality((2, 4), bare=(9.0, 1.0), normed=normed, chance=6.0)
    monkeypatch.setattr(diagnosis, "exit_quality", lambda *_: quality)
    report = diagnose("llama", tiny_model("llama"), decoding.load(tiny, "cpu")[1])
    assert report["exits are noise"].startswith("2 predict the model's own text worse than chance")
    assert report["exits are noise"].endswith(f"(final_norm=true, as LOL and DeCo have it) {told}")
