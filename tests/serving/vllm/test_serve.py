"""``decoding serve --engine vllm``: vLLM's OpenAI server with strategies, asked over HTTP."""

from __future__ import annotations

import importlib.util
import json
import os
import socket
import subprocess
import sys
import time
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

import decoding
from decoding.evals import miniature
from decoding.serving.vllm.requests import REQUESTS

if importlib.util.find_spec("vllm") is None:
    pytest.skip("vLLM is not installed", allow_module_level=True)

BEGINNINGS = ["The capital of", "Q: What is the", "Once upon a time there was a", "The king said to"]
WORDS = ["old", "red", "big", "poor", "tall", "wise"]
PROMPTS = [*BEGINNINGS, *(f"{start} {word}" for start in BEGINNINGS for word in WORDS)]
NEW = 24
START = 240  # seconds that a busy machine may take to import vLLM in three processes
AMATEUR = str(miniature.folder("amateur"))
ASKED = {
    "engine's own": ({}, decoding.DoLa()),
    "none": ({"strategy": "none"}, None),
    "dola": ({"strategy": "dola", "layers": [1, 2, 3], "final_norm": True}, decoding.DoLa([1, 2, 3], final_norm=True)),
    "contrastive-decoding": ({"strategy": "contrastive-decoding"}, decoding.ContrastiveDecoding(AMATEUR)),
    "contrastive-search": ({"strategy": "contrastive-search", "top_k": 3}, decoding.ContrastiveSearch(top_k=3)),
    "lol": ({"strategy": "lol", "lower_layers": "1,3"}, decoding.LOL(AMATEUR, lower_layers=[1, 3])),
}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def serve(port, *options):
    """The command line and the environment of a server."""
    command = [sys.executable, "-m", "decoding.evals.cli", "serve", "--port", str(port), *options]
    small = ["--dtype", "float32", "--enforce-eager", "--block-size", "32", "--max-model-len", "256"]
    environment = {name: value for name, value in os.environ.items() if not name.startswith("VLLM_")} | {
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
        "VLLM_CPU_OMP_THREADS_BIND": "nobind",
        "VLLM_CPU_KVCACHE_SPACE": "1",  # GiB
        "VLLM_NO_USAGE_STATS": "1",
    }
    return [*command, "--", *small], environment


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """An address, and what the server printed."""
    log = tmp_path_factory.mktemp("server") / "log"
    port = free_port()
    options = "--model expert --amateur amateur --layers 0,1,2,3 --strategy dola --second-prompts --candidates 4"
    command, environment = serve(port, *options.split())
    with log.open("w") as file:  # started elsewhere: the repository's kernels/ is another package's name
        process = subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT, env=environment, cwd=log.parent)
    try:
        deadline = time.monotonic() + START
        while not healthy(port):
            assert process.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.5)
        yield port, log
    finally:
        process.terminate()
        process.wait(60)


def healthy(port):
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return answer.status == 200
    except OSError:
        return False


@pytest.fixture(scope="module")
def client(server):
    import openai

    with openai.OpenAI(base_url=f"http://127.0.0.1:{server[0]}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture(scope="module")
def right():
    """The tokens of ``decoding.generate``."""
    model, tokenizer = decoding.load("expert", "cpu", "float32")

    def make(prompt, strategy):
        ids = tokenizer(prompt, return_tensors="pt")["input_ids"]
        return decoding.generate(model, ids, strategy=strategy, max_new_tokens=NEW)[0, ids.shape[1] :].tolist()

    return make


def test_clients_at_once_have_strategies_of_their_own(client, right):
    names = [list(ASKED)[i % len(ASKED)] for i in range(len(PROMPTS))]
    assert len(PROMPTS) == 28

    def ask(number):
        fields = {"return_token_ids": True, "vllm_xargs": ASKED[names[number]][0]}
        answer = client.completions.create(
            model="expert", prompt=PROMPTS[number], max_tokens=NEW, temperature=0, stream=number % 3 == 0,
            extra_body=fields,
        )  # fmt: skip
        pieces = answer if number % 3 == 0 else [answer]
        return [token for piece in pieces for choice in piece.choices for token in choice.token_ids or ()]

    with ThreadPoolExecutor(len(PROMPTS)) as clients:
        given = list(clients.map(ask, range(len(PROMPTS))))
    assert given == [right(prompt, ASKED[name][1]) for prompt, name in zip(PROMPTS, names, strict=True)]


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"strategy": "dola", "alpha": 2}, "dola: alpha=2: must be a number from 0 to 1"),
        ({"strategy": "dolla"}, "strategy='dolla'; did you mean dola or lol? expected one of dola, "),
        ({"strategy": "lol", "beta": 1}, "lol: no parameter 'beta'"),
        ({"beta": 1}, "beta: is a parameter of a strategy, which vllm_xargs do not name"),
        ({"strategy": "dola", "layers": [4]}, " 0 to 3"),
    ],
)
def test_a_bad_request_is_one_line(client, fields, message):
    from openai import BadRequestError

    with pytest.raises(BadRequestError) as raised:
        client.completions.create(model="expert", prompt="The", max_tokens=1, extra_body={"vllm_xargs": fields})
    assert raised.value.status_code == 400
    assert message in raised.value.body["message"]
    assert len(raised.value.body["message"].splitlines()) == 1


def test_what_the_server_prints_can_be_asked(server, client, right):
    port, log = server
    lines = [line.strip() for line in log.read_text().splitlines()]
    fields = [json.loads(line) for line in lines if line.startswith('{"strategy"')]
    assert [given["strategy"] for given in fields] == [*REQUESTS, "none"]
    for given in fields:
        client.completions.create(
            model="expert", prompt="The", max_tokens=1, temperature=0, extra_body={"vllm_xargs": given}
        )
    (curl,) = (line for line in lines if line.startswith("curl "))
    body = curl.partition(" -d '")[2].removesuffix("'")
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/completions", body.encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = json.load(answer)["choices"][0]["text"]
    (line,) = (line for line in lines if line.startswith("client.completions"))
    assert eval(line, {"client": client}).choices[0].text == text


def test_an_engine_that_strategies_cannot_have_is_refused_in_one_line(tmp_path):
    command, environment = serve(free_port(), "--model", "expert")
    done = subprocess.run(
        [*command, "--pipeline-parallel-size", "2"],
        env=environment, cwd=tmp_path, capture_output=True, text=True, timeout=START, check=False,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].startswith("decoding: pipeline parallelism: strategies need all layers")
    assert "Traceback" not in done.stderr
