"""vLLM's compiled model (torch.compile) gives the same tokens."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

from vllm_engines import PROMPTS, continuation, one_of_a_kind

ENGINE = """
import json, sys
from vllm_engines import PROMPTS, engine, new_tokens, one_of_a_kind, sampling
with engine(enforce_eager=False) as llm:
    assert llm.llm_engine.vllm_config.compilation_config.mode.name != "NONE"
    tokens = {name: new_tokens(llm, PROMPTS[:6], sampling(case, 12)) for name, case in one_of_a_kind().items()}
print(json.dumps(tokens))
"""


def test_a_compiled_model(tmp_path: Path) -> None:
    """In a process of its own: here nothing is compiled, since Triton's backend is pretended."""
    environment = {name: value for name, value in os.environ.items() if name not in ("TORCHDYNAMO_DISABLE",)}
    environment.update(TRITON_INTERPRET="0", VLLM_CACHE_ROOT=str(tmp_path), TORCHINDUCTOR_CACHE_DIR=str(tmp_path))
    environment["PYTHONPATH"] = os.pathsep.join(filter(None, [str(Path(__file__).parents[2] / "support"), *sys.path]))
    done = subprocess.run([sys.executable, "-c", ENGINE], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    tokens = json.loads(done.stdout.splitlines()[-1])
    right = {
        name: [continuation(case.strategy, prompt, 12) for prompt in PROMPTS[:6]]
        for name, case in one_of_a_kind().items()
    }
    assert tokens == right
