"""What an engine is refused for when it starts, in one line and before it loads weights; what requests are refused."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
from vllm import SamplingParams
from vllm.exceptions import VLLMValidationError
from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors_params_validator
from vllm_engines import AMATEUR, CASES, PROMPTS, continuation, engine, new_tokens, sampling

from decoding.serving.vllm import settings
from decoding.serving.vllm.engines import ENGINES

pytestmark = pytest.mark.quick
NGRAMS = {"method": "ngram", "num_speculative_tokens": 2, "prompt_lookup_max": 3}


def line_of(error: BaseException) -> str:
    """The line of a refusal; vLLM's configuration puts a heading and what was given around it."""
    match = re.search(r"Value error, (.*?)(?: \[type=.*)?$", str(error), re.MULTILINE)
    return match.group(1) if match else str(error)


@pytest.mark.parametrize(
    ("contrast", "options", "line"),
    [
        ({"layer": [1]}, {}, "contrast: no setting 'layer'; did you mean layers or amateur? expected one of "),
        ({"layers": [4]}, {}, "contrast: layers=[4]: the model has 4 layers, and the last is no lower one; must be "
         "from 0 to 3"),
        ({"strategy": "dolla"}, {}, "strategy='dolla'; did you mean dola"),
        ({"strategy": {"strategy": "dola", "alpha": -1}}, {}, "dola: alpha=-1: must be a number from 0 to 1"),
        ({"amateur": "./nowhere"}, {}, "contrast: amateur './nowhere' could not be loaded: "),
        ({}, {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}, "pipeline parallelism: strategies "
         "need all layers on each device; use tensor_parallel_size, with pipeline_parallel_size=1"),
        ({}, {"enable_prompt_embeds": True}, "enable_prompt_embeds: an amateur, second prompts and candidates are read "
         "by their tokens; leave it out"),
        ({}, {"ubatch_size": 2}, "microbatches: strategies need a step's tokens in one pass; leave enable_dbo and "),
        ({}, {"enable_lora": True}, "enable_lora: adapters are served as an engine's amateur alone; merge the "
         "adapter into the model"),
        ({"second_prompts": True}, {"speculative_config": NGRAMS}, "second_prompts: groups of requests have no drafts; "
         "leave speculative decoding out"),
        ({"candidates": 4}, {"speculative_config": NGRAMS, "runner": "V2"}, "candidates: groups of requests have no "
         "drafts; leave speculative decoding out"),
        ({}, {"speculative_config": NGRAMS},
         "speculative decoding with the V1 model runner: requests cannot have strategies of their own; give the engine "
         'one ("strategy" in its settings), leave drafts out, or set VLLM_USE_V2_MODEL_RUNNER=1'),
    ],
    ids=lambda value: json.dumps(value)[:60] if isinstance(value, dict) else "",
)  # fmt: skip
def test_an_engine_is_refused(contrast: dict[str, Any], options: dict[str, Any], line: str) -> None:
    before = dict(ENGINES)
    with pytest.raises(Exception) as error, engine(contrast=contrast, **options):
        pass
    assert line_of(error.value).startswith(line)
    assert before == ENGINES  # no request is admitted for it


def test_an_amateur_of_other_tokens_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "amateur"
    folder.mkdir()
    for file in Path(AMATEUR).iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    tokenizer = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
    vocabulary = tokenizer["model"]["vocab"]
    if isinstance(vocabulary, dict):
        first, second = list(vocabulary)[700:702]
        vocabulary[first], vocabulary[second] = vocabulary[second], vocabulary[first]
    else:
        first, second = vocabulary[700][0], vocabulary[701][0]
        vocabulary[700], vocabulary[701] = vocabulary[701], vocabulary[700]
    (folder / "tokenizer.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    with pytest.raises(Exception) as error, engine(amateur=str(folder)):
        pass
    assert line_of(error.value) == (
        f"amateur: its tokenizer is another one: token 700 is {first!r} for the expert and {second!r} for the amateur; "
        "it must have the expert's tokenizer"
    )


BAD_REQUESTS = [
    ({"strategy": "dolla"}, "strategy='dolla'; did you mean dola"),
    ({"strategy": "dola", "alpha": 7}, "dola: alpha=7: must be a number from 0 to 1"),
    ({"strategy": "dola", "layers": [3]}, "dola: layers=(3,): this engine shows layers 1, 2 of 0 to 3; start it with "
     '"layers": [1, 2, 3]'),
    ({"strategy": "dola", "layers": [9]}, "dola: layers=(9,): no lower layer 9; must be from 0 to 3"),
    ({"strategy": "contrastive-decoding"}, "contrastive-decoding: this engine has no amateur; start it with one "),
    ({"alpha": 0.1}, 'alpha: is a parameter of a strategy, which vllm_xargs do not name; give "strategy" too, one of '
     "dola, contrastive-decoding, lol, context-aware"),
    ({"strategy": "none", "alpha": 0.1}, "strategy 'none' has no parameters, got alpha"),
    ({"strategy": "dola", "_group": ["x", 0]}, "dola: no parameter '_group'"),
    ({"strategy": "none", "_group": ["x"]}, "none: no parameter '_group'"),
]  # fmt: skip


def test_requests_are_refused_and_others_go_on() -> None:
    with (
        patch.object(settings, "settings_of", wraps=settings.settings_of) as reads,
        engine(amateur=None, contrast={"layers": [1, 2]}) as llm,
    ):
        assert reads.call_count == 1  # by the checks, and no more by the model
        for fields, line in BAD_REQUESTS:
            # One bad request of three refuses all, as any bad parameter of vLLM does, and none of them stays.
            params = [SamplingParams(temperature=0.0, max_tokens=4, extra_args=given) for given in (None, fields, None)]
            with pytest.raises(VLLMValidationError) as error:
                llm.generate(PROMPTS[:3], params, use_tqdm=False)
            assert str(error.value).startswith(line)
            assert "\n" not in str(error.value)
            assert not llm.llm_engine.has_unfinished_requests()
        right = [continuation(CASES["dola"].strategy, prompt) for prompt in PROMPTS[:3]]
        assert new_tokens(llm, PROMPTS[:3], sampling(CASES["dola"])) == right
        # What is of other processors, and of vLLM's own.
        plain = [continuation(None, prompt) for prompt in PROMPTS[:3]]
        assert new_tokens(llm, PROMPTS[:3], sampling(None, extra_args={"target_token": 5})) == plain
        beside = {"strategy": "dola", "kv_transfer_params": {"do_remote_decode": False}}
        assert new_tokens(llm, PROMPTS[:3], sampling(None, extra_args=beside)) == right


def test_two_engines_in_one_process_serve_what_is_their_own() -> None:
    with (
        engine(amateur=None, contrast={"layers": [1, 2, 3]}) as first,
        engine(contrast={"layers": [], "strategy": dict(CASES["cd-strong"].fields or {})}) as second,
    ):
        for _ in range(2):
            for llm, served, other in ((first, "dola", "cd"), (second, "cd", "dola")):
                right = [continuation(CASES[served].strategy, prompt, 8) for prompt in PROMPTS[:3]]
                assert new_tokens(llm, PROMPTS[:3], sampling(CASES[served], 8)) == right
                with pytest.raises(VLLMValidationError, match=r"this engine (has no amateur|shows no lower layers)"):
                    llm.generate(PROMPTS[:1], sampling(CASES[other], 8), use_tqdm=False)
                own = CASES["cd-strong"].strategy if llm is second else None
                plain = [continuation(own, prompt, 8) for prompt in PROMPTS[:3]]
                assert new_tokens(llm, PROMPTS[:3], sampling(None, 8)) == plain


def test_other_engines_are_left_alone() -> None:
    """A plain engine decodes as ever beside the plug-in, and refuses strategies, alone and beside one that has them."""
    right = [continuation(None, prompt, 4) for prompt in PROMPTS[:3]]

    def check_plain(llm: Any) -> None:
        assert new_tokens(llm, PROMPTS[:3], sampling(None, 4)) == right
        with pytest.raises(VLLMValidationError, match=r"^strategy='dola': this engine serves no strategies"):
            llm.generate(PROMPTS[:1], sampling(CASES["dola"], 4), use_tqdm=False)

    with engine(hf_overrides={}, additional_config={}) as plain:
        check_plain(plain)
        with engine(amateur=None, contrast={"layers": [1, 2, 3]}) as served:
            contrasted = [continuation(CASES["dola"].strategy, prompt, 4) for prompt in PROMPTS[:3]]
            for _ in range(2):
                assert new_tokens(served, PROMPTS[:3], sampling(CASES["dola"], 4)) == contrasted
                check_plain(plain)
            # The V2 runner's engines load and ask the same classes.
            of_v2, of_plain = (
                build_custom_logits_processors_params_validator(llm.llm_engine.model_config.logits_processors)
                for llm in (served, plain)
            )
            of_v2(sampling(CASES["dola"], 4))
            with pytest.raises(VLLMValidationError, match=r"^strategy='dola': this engine serves no strategies"):
                of_plain(sampling(CASES["dola"], 4))


OLD_TRANSFORMERS = """
import importlib, os, pkgutil, sys
os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"
import vllm.model_executor.models.llama, vllm.v1.worker.gpu_model_runner
from vllm.model_executor.models import ModelRegistry
ModelRegistry.models["LlamaForCausalLM"].load_model_cls()
before = {name for name in sys.modules if name.startswith("transformers.")}
sys.modules["transformers"].__version__ = "5.16.0"  # vLLM has put another module in its place
from vllm.plugins import load_general_plugins
load_general_plugins()
import decoding.serving.vllm
for module in pkgutil.iter_modules(decoding.serving.vllm.__path__):
    if module.name in LOADED:
        importlib.import_module(f"decoding.serving.vllm.{module.name}")
print(ModelRegistry.models["ContrastLlamaForCausalLM"].load_model_cls().__name__)
print({name for name in sys.modules if name.startswith("transformers.")} - before)
try:
    import decoding.transformers_private
except ImportError as error:
    print(error)
"""
# What runs inside an engine; how one is started may import more.
LOADED = ("plugin", "start", "admission", "architectures", "model", "model_state", "processor", "scheduler",
          "scheduled_groups", "scheduled_steps", "rows", "scores", "requests", "settings", "search", "groups",
          "prompt_scores", "second_prompts")  # fmt: skip


def test_the_plug_in_loads_beside_a_transformers_that_the_library_refuses() -> None:
    """It imports nothing of transformers that vLLM does not, whatever the version."""
    code = f"LOADED = {LOADED}\n{OLD_TRANSFORMERS}"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    name, more, refusal = done.stdout.splitlines()[-3:]
    assert (name, more) == ("ContrastLlamaForCausalLM", "set()")
    assert "this is 5.16.0" in refusal
