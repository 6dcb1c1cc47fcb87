"""``decoding generate`` and ``decoding doctor``: what is printed where, and with which exit code."""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from forked_process import forked
from opened_drafts import opened_drafts
from tiny_models import tiny_model
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

import decoding
from decoding.cli.app import run
from decoding.cli.diagnosis import diagnose
from decoding.drafts.options import DraftOptions
from decoding.evals.cli import main
from decoding.strategies.registry import parse_strategy

STORIES = Path(__file__).resolve().parents[4] / "shared" / "models" / "stories3M"
WORDS = ["<unk>", "</s>", *(f"w{i}" for i in range(30))]
CONTEXT = 48

pytestmark = pytest.mark.usefixtures("models_loaded_once")


def save(model, folder, **tokenizer):
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    model.save_pretrained(folder)
    PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", unk_token="<unk>", **tokenizer).save_pretrained(
        folder
    )
    return str(folder)


def llama():
    torch.manual_seed(0)
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS),
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            max_position_embeddings=CONTEXT,
            eos_token_id=None,
            bos_token_id=None,
        )
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return save(llama(), tmp_path_factory.mktemp("tiny"))


@pytest.fixture
def generate(tiny, capfd):
    """Run ``decoding generate`` on the tiny model; (exit code, stdout, stderr)."""

    def call(*arguments):
        code = run(["generate", "--model", tiny, *arguments])
        return code, *capfd.readouterr()

    return call


def refused(result):
    code, out, err = result
    assert (code, out) == (2, "")
    assert len(err.splitlines()) == 1
    assert "Traceback" not in err
    return err


# --- generate --------------------------------------------------------------------------------------------------------


PROMPT = "w1 w2 w3 w1 w2 w3"
OPTIONS = {"repetition_penalty": 1.2, "no_repeat_ngram_size": 2, "suppress_tokens": [5, 9], "eos_token_id": [7, 8]}


# Options are read in one place; transformers' own search, its beams and a strategy's session heed them, each its way.
@pytest.mark.parametrize(
    ("strategy", "option"),
    [
        *(("dola:layers=1", option) for option in OPTIONS),
        ("greedy", "repetition_penalty"),
        ("beam", "no_repeat_ngram_size"),
    ],
)
def test_an_option_of_the_generation_config_gives_the_tokens_of_generate_with_it(option, strategy, generate, tiny):
    value = OPTIONS[option]
    text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
    code, out, err = generate(
        "--prompt", PROMPT, "--strategy", strategy, "--max-new-tokens", "12", "--generation-config", f"{option}={text}",
        "--json",
    )  # fmt: skip
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["generation_config"][option] == value
    model, tokenizer = decoding.load(tiny, "cpu")
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    spec = parse_strategy(strategy)
    ways = {"greedy": {}, "beam": {"num_beams": 4}}.get(strategy, {"custom_generate": spec.strategy})
    made = model.generate(ids, attention_mask=mask, max_new_tokens=12, do_sample=False, **ways, **{option: value})
    assert record["continuation"].strip() == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)


@pytest.mark.parametrize(
    "strategy",
    [
        "guidance:negative=w9 w8,scale=2.5",
        "guidance",
        "weighted-contrast:terms=2*expert - 1*instead:w9 w8,alpha=none,form=log_probs,when=entropy<quantile .6",
        "weighted-contrast:terms=2*expert - 1*self:skip_layers=1;dropout=0.5,plausible=reader 2,weight_by=entropy",
        "documents:documents=w9 w8;w7,none_weight=1.0,document_weight=1.0",
        "adaptive-context:context=w9 w8,floor=0.5",
        "masked-heads:heads=0.0+1.1,beta=2",
        "skipped-layers:layers=1,beta=2",
        "contrastive-decoding:amateur=self:skip_layers=0",
        "proxy-tuning:tuned=prompt:w9 w8,untuned=last-token",
        "safe-decoding:safe=self:mask_heads=0.0,strength=9.0",
    ],
)
def test_readers_of_every_kind_are_written_as_text(strategy, generate, tiny):
    code, out, err = generate("--prompt", PROMPT, "--strategy", strategy, "--max-new-tokens", "12", "--json")
    assert (code, err) == (0, "")
    model, tokenizer = decoding.load(tiny, "cpu")
    spec = parse_strategy(strategy).with_tokenizer(tokenizer)
    inputs = tokenizer(PROMPT, return_tensors="pt")
    ids, mask = inputs["input_ids"], inputs["attention_mask"]
    made = decoding.generate(model, ids, attention_mask=mask, strategy=spec.strategy, max_new_tokens=12)
    record = json.loads(out)
    assert record["continuation"].strip() == tokenizer.decode(made[0, ids.shape[1] :], skip_special_tokens=True)
    assert record["parameters"] == json.loads(json.dumps(spec.recorded))


@pytest.mark.parametrize(
    ("strategy", "message"),
    [
        ("weighted-contrast", "weighted-contrast needs terms: for instance weighted-contrast:terms=1.5*expert"),
        ("weighted-contrast:terms=expert", "terms='expert': must be readers with weights"),
        ("weighted-contrast:terms=1*expert,when=later", "when='later': must be a condition such as 'first 2'"),
        ("weighted-contrast:terms=1*expert - 1*./none", "reader 2 ./none: there is no such folder"),
        ("guidance:negative=w9,scale=nan", "scale=nan: must be"),
        (
            "guidance:negative=" + "w9 " * 60,
            "the negative reader's prompt has 60 tokens, which with 4 new ones is more",
        ),
        ("masked-heads:heads=0.2", "head 2: layer 0 of LlamaForCausalLM has heads 0 to 1"),
        ("skipped-layers:layers=2", "layer 2: LlamaForCausalLM has layers 0 to 1"),
        ("expert-contrast", "LlamaForCausalLM has no router that sends tokens to experts"),
        ("documents:documents=w1;;w2", "document 2 is empty"),
        ("contrastive-decoding:amateur=self:drop=1", "'drop=1' is none of its options; did you mean dropout"),
    ],
)
def test_a_reader_that_cannot_be_is_one_line(strategy, message, generate):
    assert message in refused(generate("--prompt", PROMPT, "--strategy", strategy, "--max-new-tokens", "4"))


def test_a_sampler_of_the_generation_config_is_that_of_generate(generate, tiny):
    result = generate("--prompt", PROMPT, "--strategy", "sampling:top_p=1.0", "--max-new-tokens", "12", "--seed", "3",
                      "--generation-config", "min_p=0.9", "--json")  # fmt: skip
    model, tokenizer = decoding.load(tiny, "cpu")
    ids = tokenizer(PROMPT, return_tensors="pt")["input_ids"]
    made = []
    for min_p in (0.9, None):
        torch.manual_seed(3)
        new = model.generate(ids, max_new_tokens=12, do_sample=True, top_k=0, min_p=min_p)[0, ids.shape[1] :]
        made.append(tokenizer.decode(new, skip_special_tokens=True))
    assert json.loads(result[1])["continuation"].strip() == made[0] != made[1]


def test_what_the_folder_has_acts_unless_the_call_says_otherwise(generate, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "penalised")
    config = json.loads((folder / "generation_config.json").read_text())
    (folder / "generation_config.json").write_text(json.dumps(config | {"repetition_penalty": 3.0, "temperature": 0.5}))
    asked = ("--prompt", PROMPT, "--strategy", "greedy", "--max-new-tokens", "12", "--json")
    plain, own, off = (
        json.loads(generate(*asked, *more)[1])
        for more in (
            (), ("--model", str(folder)), ("--model", str(folder), "--generation-config", "repetition_penalty=1"),
        )
    )  # fmt: skip
    assert plain["continuation"] == off["continuation"] != own["continuation"]
    shown = [record["generation_config"].get("repetition_penalty") for record in (plain, own, off)]
    assert shown == [None, 3.0, 1.0]
    assert "temperature" not in own["generation_config"]  # which has no effect on greedy search


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("repetition_penalti=1.2", "transformers has no such option; did you mean repetition_penalty"),
        ("repetition_penalty=high", "repetition_penalty='high': must be a number"),
        ("max_new_tokens=9", "max_new_tokens: is given by --max-new-tokens N"),
        ("num_return_sequences=2", "is given by --num-return-sequences N"),
        ("min_p=0.1", "min_p: has an effect with sampling alone, and contrastive-search has none"),
    ],
)
def test_a_wrong_option_of_the_generation_config_is_one_line(option, message, generate):
    assert message in refused(generate("--prompt", PROMPT, "--generation-config", option))


def test_the_prompt_and_its_continuation_are_printed(generate):
    code, out, err = generate("--prompt", "w1 w2 w3", "--max-new-tokens", "5")
    assert (code, err) == (0, "")
    assert re.fullmatch(r"w1 w2 w3( \S+){5}\n", out)


@pytest.mark.parametrize(
    "strategy", ["contrastive-search", "contrastive-search:top_k=2", "greedy", "sampling", "beam:num_beams=2"]
)
def test_json_is_one_object_a_prompt(generate, strategy, tiny):
    code, out, err = generate(
        "--prompt", "w1 w2", "--prompt", "w3 w4", "--json", "--strategy", strategy, "--max-new-tokens", "4"
    )
    assert (code, err) == (0, "")
    records = [json.loads(line) for line in out.splitlines()]
    assert [record["prompt"] for record in records] == ["w1 w2", "w3 w4"]
    for record in records:
        assert record["text"] == record["prompt"] + record["continuation"]
        assert record["new_tokens"] == 4
        assert record["seconds"] > 0
        assert (record["model"], record["strategy"]) == (tiny, strategy.partition(":")[0])
    assert records[0]["parameters"] == parse_strategy(strategy).parameters


# Which strategy reads which drafts is held by tests/decoding/generation; here each is given once on the command line.
@pytest.mark.parametrize(
    ("strategy", "drafts"),
    [
        ("contrastive-search", "prompt-lookup"), ("greedy", "exit:1"), ("dola:layers=1", "prompt-lookup"),
        ("sampling", "itself"),
    ],
)  # fmt: skip
def test_drafts_make_the_same_text(strategy, drafts, generate, tiny):
    drafts = tiny if drafts == "itself" else drafts
    asked = ("--prompt", PROMPT, "--prompt", "w7 w8", "--strategy", strategy, "--max-new-tokens", "12", "--json")
    if strategy == "sampling":  # which has one token to draw from: drafts change which draws are made
        asked = (*asked, "--set", "top_k=1")
    plain = [json.loads(line) for line in generate(*asked)[1].splitlines()]
    with opened_drafts() as opened:
        code, out, err = generate(*asked, "--drafts", drafts, "--draft-tokens", "3")
    assert (code, err) == (0, "")
    assert opened == [DraftOptions(drafts, 3)] * 2
    for with_drafts, without in zip(map(json.loads, out.splitlines()), plain, strict=True):
        assert with_drafts["text"] == without["text"]
        assert (with_drafts["generation_config"]["drafts"], with_drafts["generation_config"]["draft_tokens"]) == (
            drafts, 3
        )  # fmt: skip
        assert "drafts" not in without["generation_config"]


def test_drafts_of_a_stream_and_of_a_generation_config(generate):
    asked = ("--prompt", PROMPT, "--max-new-tokens", "12")
    plain = generate(*asked)
    for more in (["--drafts", "prompt-lookup", "--stream"], ["--generation-config", "drafts=prompt-lookup"]):
        with opened_drafts() as opened:
            assert generate(*asked, *more) == plain
        assert opened == [DraftOptions("prompt-lookup", None)]


def test_drafts_of_a_folder_act_unless_the_call_or_beams_leave_them_out(generate, tiny, tmp_path):
    folder = shutil.copytree(tiny, tmp_path / "drafting")
    config = json.loads((folder / "generation_config.json").read_text())
    config.pop("_from_model_config", None)  # with which transformers leaves out what it does not know
    (folder / "generation_config.json").write_text(json.dumps(config | {"drafts": "exit:1", "draft_tokens": 2}))
    asked = ("--prompt", PROMPT, "--max-new-tokens", "8")
    own = (*asked, "--model", str(folder))
    with opened_drafts() as opened:
        assert generate(*own) == generate(*asked)
        assert generate(*own, "--strategy", "greedy", "--draft-tokens", "auto") == generate(
            *asked, "--strategy", "greedy"
        )
    assert opened == [DraftOptions("exit:1", 2), DraftOptions("exit:1", None)]
    with opened_drafts() as opened:
        assert generate(*own, "--drafts", "none") == generate(*asked)
        assert generate(*own, "--strategy", "beam") == generate(*asked, "--strategy", "beam")
    assert opened == []


def test_set_reaches_the_strategy(generate):
    _, out, _ = generate("--prompt", "w1", "--json", "--set", "top_k=3", "--set", "penalty_alpha=0.5")
    assert json.loads(out)["parameters"] == {"penalty_alpha": 0.5, "top_k": 3, "max_history": None}


def test_zero_alpha_is_greedy_search(generate):
    greedy = generate("--prompt", "w1 w2", "--strategy", "greedy")
    assert generate("--prompt", "w1 w2", "--set", "penalty_alpha=0") == greedy


def test_a_prompt_from_standard_input(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("w1 w2\n"))
    code, out, _ = generate("--max-new-tokens", "3")
    assert code == 0
    assert out.startswith("w1 w2 ")


@pytest.mark.parametrize("strategy", ["contrastive-search", "greedy", "sampling"])
def test_a_stream_gives_the_same_text(generate, strategy):
    arguments = ("--prompt", "w1 w2", "--strategy", strategy, "--max-new-tokens", "8")
    assert generate(*arguments, "--stream")[1].split() == generate(*arguments)[1].split()


def test_a_seed_decides_what_is_drawn(generate):
    def drawn(seed):
        return generate("--prompt", "w1", "--strategy", "sampling", "--seed", seed, "--max-new-tokens", "20")[1]

    assert drawn("1") == drawn("1") != drawn("2")


def test_several_texts_of_one_prompt(generate):
    _, out, _ = generate("--prompt", "w1", "--strategy", "sampling", "--num-return-sequences", "3")
    assert len(set(out.splitlines())) == 3


def test_the_default_length_ends_at_the_context(generate):
    _, out, _ = generate("--prompt", "w1 w2", "--json")
    assert json.loads(out)["new_tokens"] == CONTEXT - 2


def test_results_are_written_too(generate, tmp_path):
    _, out, _ = generate("--prompt", "w1", "--json", "--output", str(tmp_path / "a" / "b"))
    assert (tmp_path / "a" / "b" / "generate.jsonl").read_text() == out


def test_what_follows_the_end_token_is_not_counted(tmp_path, capfd):
    model = llama()
    model.generation_config.eos_token_id = list(range(len(WORDS)))  # ends at once, whatever it says
    folder = save(model, tmp_path)
    assert run(["generate", "--model", folder, "--prompt", "w1", "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["new_tokens"] == 1


def test_a_chat_template_wraps_the_prompt(tmp_path, capfd):
    folder = save(llama(), tmp_path, chat_template="{% for m in messages %}w5 {{ m.content }} w6{% endfor %}")
    assert run(["generate", "--model", folder, "--prompt", "w1", "--chat", "--json", "--max-new-tokens", "3"]) == 0
    chat = json.loads(capfd.readouterr().out)
    assert run(["generate", "--model", folder, "--prompt", "w5 w1 w6", "--json", "--max-new-tokens", "3"]) == 0
    assert chat["text"] == json.loads(capfd.readouterr().out)["continuation"].lstrip()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--strategy", "contrastive-serch"], "did you mean contrastive-search"),
        (["--set", "topk=3"], "did you mean top_k?"),
        (["--set", "top_k"], "expected name=value"),
        (["--set", "top_k=3", "--set", "top_k=4"], "given twice"),
        (["--set", "top_k=four"], "must be a whole number"),
        (["--set", "top_k=0"], "must be a whole number from 1"),
        (["--set", "top_k=33"], "top_k=33: must be 1 to 32, the size of the model's vocabulary"),
        (["--strategy", "sampling:top_k=33"], "must be 0 to 32"),
        (["--set", "penalty_alpha=1.5"], "must be a number from 0 to 1"),
        (["--prompt", ""], "the prompt is empty"),
        (["--prompt", " \n "], "the prompt is empty"),
        (["--prompt", "w1 " * 60], "the prompt has 60 tokens and the model's context 48"),
        (["--strategy", "greedy", "--prompt", "w1 " * 48], "the prompt has 48 tokens and the model's context 48"),
        (["--max-new-tokens", "48"], "must be 1 to 46"),
        (["--device", "tpu9"], "must be one of cpu"),
        (["--dtype", "int8"], "must be auto"),
        (["--chat"], "no chat template"),
        (["--drafts", "exit:many"], "--drafts='exit:many': must end with how many layers are read, such as exit:8"),
        (["--drafts", ""], "--drafts='': must be prompt-lookup, amateur"),
        (["--drafts", "exit:2"], "drafts=exit:2: the model has 2 layers; must be exit:1 to exit:1"),
        (["--drafts", "amateur"], "drafts=amateur: this strategy has no amateur; must be prompt-lookup"),
        (["--drafts", "./absent"], "assistant ./absent: there is no such folder"),
        (["--drafts", "prompt-lookup", "--draft-tokens", "-1"], "--draft-tokens=-1: must be a whole number from 1"),
        (["--drafts", "prompt-lookup", "--draft-tokens", "few"], "--draft-tokens='few': must be a whole number from 1"),
        (["--draft-tokens", "4"], "draft_tokens=4: has an effect with drafts alone"),
        (["--drafts", "exit:1", "--strategy", "beam"], "drafts: beam reads no drafts"),
        (["--drafts", "exit:1", "--generation-config", "drafts=exit:1"], "--generation-config drafts is given too"),
        (["--drafts", "exit:1", "--compile"], "draft_tokens=auto (the default): with compile=True"),
        (["--stream", "--json"], "give one of them"),
        (["--stream", "--prompt", "w5"], "one prompt"),
        (["--stream", "--strategy", "beam"], "beam search"),
        (["--num-return-sequences", "2"], "or sampling"),
        (["--output", os.devnull], "cannot be written"),
    ],
)
def test_bad_input_is_one_line_and_exit_code_2(generate, arguments, message):
    prompt = [] if arguments[0] == "--prompt" or arguments[2:3] == ["--prompt"] else ["--prompt", "w1 w2"]
    if "--stream" in arguments and "--prompt" in arguments:
        prompt = ["--prompt", "w1 w2"]
    assert message in refused(generate(*prompt, *arguments))


@pytest.mark.parametrize("command", ["generate", "doctor"])
def test_a_model_that_cannot_be_loaded_is_one_line(command, tmp_path, capfd):
    prompt = ["--prompt", "w1"] if command == "generate" else []
    for folder, message in [(tmp_path, "no config.json"), (tmp_path / "absent", "no such folder")]:
        code = run([command, "--model", str(folder), *prompt])
        assert message in refused((code, *capfd.readouterr()))


def test_an_empty_standard_input_is_an_empty_prompt(generate, monkeypatch):
    monkeypatch.setattr(sys, "stdin", io.StringIO("\n"))
    assert "the prompt is empty" in refused(generate())


def test_typers_own_usage_errors_end_with_2(generate):
    for arguments in (["--max-new-tokens", "0"], ["--no-such-option"], ["--seed", "-1"]):
        code, out, err = generate("--prompt", "w1", *arguments)
        assert (code, out) == (2, "")
        assert "Traceback" not in err


@pytest.mark.parametrize("error", [RuntimeError("a\nb"), KeyboardInterrupt(), ValueError()])
def test_the_unexpected_is_one_line_and_an_interrupt_is_quiet(generate, monkeypatch, error):
    def fail(*arguments, **options):
        raise error

    monkeypatch.setattr("decoding.models.loading.load", fail)
    code, _, err = generate("--prompt", "w1")
    if isinstance(error, KeyboardInterrupt):
        assert (code, err) == (130, "")
        return
    assert code == 1
    assert len(err.splitlines()) == 1
    assert type(error).__name__ in err
    monkeypatch.setenv("DECODING_DEBUG", "1")
    with pytest.raises(type(error)):
        generate("--prompt", "w1")


# --- doctor and the app ----------------------------------------------------------------------------------------------


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


def test_doctor_and_generate_serve_learned_positions(tmp_path, capfd):
    config = GPT2Config(vocab_size=len(WORDS), n_positions=16, n_embd=16, n_layer=1, n_head=2)
    config.eos_token_id = config.bos_token_id = 1
    folder = save(GPT2LMHeadModel(config), tmp_path)
    capfd.readouterr()  # save_pretrained has a progress bar
    assert run(["doctor", "--model", folder]) == 0
    assert run(["generate", "--model", folder, "--prompt", "w1 w2"]) == 0
    assert capfd.readouterr().err == ""


@pytest.mark.parametrize("arguments", [["--help"], ["generate", "--help"], ["doctor", "--help"]])
def test_help_has_an_example(arguments, capfd):
    assert run(arguments) == 0
    assert "Example: decoding" in capfd.readouterr().out


def test_version(capfd):
    assert run(["--version"]) == 0
    assert re.fullmatch(r"contrastive-decoding \d+\.\d+\S*\n", capfd.readouterr().out)


def test_a_pipe_gets_text_alone(tiny, tmp_path):
    """As a process of its own: a fork of this one, which has imported torch already."""
    (tmp_path / "in").write_text("w1 w2")

    def process():
        for stream, name in enumerate(("in", "out", "err")):
            os.dup2(os.open(tmp_path / name, os.O_RDWR | os.O_CREAT), stream)
        with open(0) as sys.stdin, open(1, "w") as sys.stdout, open(2, "w") as sys.stderr:
            sys.argv = ["decoding", "generate", "--model", tiny, "--max-new-tokens", "3"]
            return main()

    assert forked(process) == 0
    assert (tmp_path / "err").read_text() == ""
    assert re.fullmatch(r"w1 w2( \S+){3}\n", (tmp_path / "out").read_text())


def test_a_process_ends_with_the_code():
    command = [sys.executable, "-m", "decoding.evals.cli", "generate", "--strategy", "gredy", "--prompt", "w1"]
    done = subprocess.run(command, capture_output=True, text=True)  # it is told before torch is imported
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("decoding: ")
    assert done.stderr.count("\n") == 1


def test_a_trained_model_tells_a_story(capfd):
    if not STORIES.is_dir():
        pytest.skip(f"{STORIES.name} is not here: the trained test models are not part of the repository")
    assert run(["generate", "--model", str(STORIES), "--prompt", "Once upon a time", "--max-new-tokens", "12"]) == 0
    assert capfd.readouterr().out.startswith("Once upon a time, there was a")
