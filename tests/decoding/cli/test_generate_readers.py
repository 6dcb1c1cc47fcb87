"""``decoding generate`` with readers that are written as text."""

import json

import pytest
from command_results import refused
from word_models import PROMPT

import decoding
from decoding.strategies.registry import parse_strategy

pytestmark = pytest.mark.usefixtures("models_loaded_once")


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
    assert message in refused(*generate("--prompt", PROMPT, "--strategy", strategy, "--max-new-tokens", "4"))
