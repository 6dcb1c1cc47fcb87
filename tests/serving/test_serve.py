"""``transformers serve`` on an exported folder, and ``decoding serve``, asked over HTTP by OpenAI's client."""

from __future__ import annotations

import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import pytest
from forked_process import after_fork

import decoding
from decoding.evals import miniature

for needed in ("openai", "fastapi", "uvicorn"):
    if importlib.util.find_spec(needed) is None:
        pytest.skip(f"the extra 'serve' is not installed: no {needed}", allow_module_level=True)

STRATEGY = decoding.ContrastiveSearch(penalty_alpha=0.6, top_k=5)
TEMPLATE = "{% for message in messages %}{{ message.content }}{% endfor %}"  # the miniature goes on with stories
PROMPTS = miniature.prompts()[:3]
NEW = 20
START = 120  # seconds that a busy machine may take to import and load
FORK = multiprocessing.get_context("fork")  # a child that need not import torch again


@dataclass(frozen=True)
class Answer:
    """What a client was told: the text, in how many pieces it came, and why it ended."""

    text: str
    pieces: int
    reason: str


def serve(program, arguments, log):
    """Be the process of a program's command ``serve`` with these arguments, which writes to a file alone."""
    os.environ["HF_HUB_OFFLINE"] = "1"
    os.chdir(log.parent)
    sys.stdout = sys.stderr = log.open("w", buffering=1)
    for stream in (1, 2):
        os.dup2(sys.stdout.fileno(), stream)
    after_fork()
    if program == "transformers":
        from transformers.cli.transformers import main
    else:
        from decoding.evals.cli import main

    sys.argv = [program, "serve", *arguments]
    main()


class Server:
    """A running server and a client of it."""

    def __init__(self, folder, log, *options, program="transformers"):
        # Port 0: the system picks a free one, which the log names.
        arguments = [str(folder), "--host", "127.0.0.1"] if program == "transformers" else []
        arguments += ["--port", "0", *options, "--device", "cpu", "--dtype", "float32"]
        self.folder, self.log = folder, log
        log.touch()
        self.process = FORK.Process(target=serve, args=(program, arguments, log))
        self.process.start()
        import openai  # a second, in which a worker that is given other files imports it too

        self.client = openai.OpenAI(base_url=f"http://127.0.0.1:{self._port()}/v1", api_key="none", max_retries=0)

    def _port(self):
        deadline = time.monotonic() + START
        while time.monotonic() < deadline:
            found = re.search(r"running on http://127\.0\.0\.1:(\d+)", self.log.read_text())
            if found:
                return found[1]
            assert self.process.is_alive(), self.log.read_text()
            time.sleep(0.1)
        raise AssertionError(f"no server after {START} s: {self.log.read_text()}")

    def stop(self):
        self.client.close()
        self.process.terminate()
        self.process.join(20)
        assert not self.process.is_alive()

    def ask(self, prompt, stream=False, **options):
        given = {"max_tokens": NEW, **options}
        answer = self.client.chat.completions.create(
            model=str(self.folder), messages=[{"role": "user", "content": prompt}], stream=stream, **given
        )
        if not stream:
            return Answer(answer.choices[0].message.content, 1, answer.choices[0].finish_reason)
        pieces = [chunk.choices[0] for chunk in answer]
        texts = [piece.delta.content for piece in pieces if piece.delta.content]
        return Answer("".join(texts), len(texts), pieces[-1].finish_reason)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The embedded expert with a chat template, exported."""
    home = tmp_path_factory.mktemp("serve")
    shutil.copytree(miniature.folder("expert"), home / "chat")
    (home / "chat" / "chat_template.jinja").write_text(TEMPLATE)
    return decoding.export(home / "chat", STRATEGY, home / "exported", link="hard", device="cpu")


@pytest.fixture(scope="module")
def server(folder, tmp_path_factory):
    running = Server(folder, tmp_path_factory.mktemp("log") / "server.log", "--trust-remote-code")
    yield running
    running.stop()


@pytest.fixture(scope="module")
def texts():
    """What strategies make of a prompt in this process, from the model's own folder."""
    model, tokenizer = miniature.load("expert")

    def make(prompt, strategy=STRATEGY, **options):
        ids = tokenizer(prompt, return_tensors="pt", add_special_tokens=False)["input_ids"]
        given = {"max_new_tokens": NEW, **options}
        sequence = decoding.generate(model, ids, strategy=strategy, tokenizer=tokenizer, **given)[0]
        return tokenizer.decode(sequence[ids.shape[1] :], skip_special_tokens=True)

    return make


@pytest.mark.parametrize("stream", [False, True])
def test_a_client_gets_the_text_of_contrastive_search(server, texts, stream):
    answer = server.ask(PROMPTS[0], stream)
    assert answer.text == texts(PROMPTS[0])
    assert answer.text != texts(PROMPTS[0], strategy=None)  # greedy search
    assert answer.reason == "length"
    assert answer.pieces == 1 or (stream and answer.pieces > NEW // 4)  # pieces that meet in a queue come as one


def test_two_clients_at_once_each_get_their_own_text(server, texts):
    asked = [(prompt, stream) for prompt in PROMPTS for stream in (True, False)]
    with ThreadPoolExecutor(2) as clients:
        answers = list(clients.map(lambda request: server.ask(*request), asked))
    for (prompt, _), answer in zip(asked, answers, strict=True):
        assert answer.text == texts(prompt)


def test_what_a_request_asks_for_reaches_the_strategy(server, texts):
    stopped = server.ask(PROMPTS[0], stop=["the"], stream=True)
    assert stopped.text == texts(PROMPTS[0], stop_strings=["the"])
    assert stopped.reason == "stop"
    penalised = server.ask(PROMPTS[1], frequency_penalty=0.3)
    assert penalised.text == texts(PROMPTS[1], repetition_penalty=1.3)
    settings = {"max_new_tokens": NEW, "decoding_strategy": {"penalty_alpha": 0.2}}
    other = server.ask(PROMPTS[1], extra_body={"generation_config": json.dumps(settings)})
    assert other.text == texts(PROMPTS[1], decoding.ContrastiveSearch(0.2, 5))
    plain = server.client.completions.create(model=str(server.folder), prompt=PROMPTS[2], max_tokens=NEW)
    assert plain.choices[0].text == texts(PROMPTS[2])


def test_a_client_that_leaves_does_not_hold_up_the_next(server, texts):
    messages = [{"role": "user", "content": PROMPTS[0]}]
    began = time.monotonic()
    endless = {"max_tokens": 100_000, "logit_bias": {"2": -100.0}}  # without the end token
    leaving = server.client.chat.completions.create(model=str(server.folder), messages=messages, stream=True, **endless)
    for _ in zip(range(3), leaving, strict=False):
        pass
    leaving.close()
    assert server.ask(PROMPTS[1]).text == texts(PROMPTS[1])
    assert time.monotonic() - began < 60  # 100,000 tokens would take many minutes


def test_a_server_with_continuous_batching_answers_with_an_error(folder, tmp_path):
    from openai import InternalServerError

    running = Server(folder, tmp_path / "server.log", "--trust-remote-code", "--continuous-batching")
    try:
        with pytest.raises(InternalServerError):
            running.ask(PROMPTS[0])
    finally:
        running.stop()
    assert "continuous batching would leave out the strategy of" in running.log.read_text()


def test_decoding_serve_exports_a_strategy_and_serves_it(folder, texts, tmp_path):
    exported, model = tmp_path / "exported", str(folder.parent / "chat")
    options = ["--engine", "transformers", "--model", model, "--strategy", "dola", "--output", str(exported), "--"]
    running = Server(exported, tmp_path / "server.log", *options, program="decoding")
    try:
        assert running.ask(PROMPTS[0]).text == texts(PROMPTS[0], decoding.DoLa())
        (curl,) = (line for line in running.log.read_text().splitlines() if line.startswith("curl "))
        body = json.loads(curl.partition(" -d '")[2].removesuffix("'"))
        content = body.pop("messages")[0]["content"]
        answer = running.client.chat.completions.create(
            model=body["model"], messages=[{"role": "user", "content": content}],
            extra_body={"generation_config": body["generation_config"]},
        )  # fmt: skip
        assert answer.choices[0].message.content == texts(content, decoding.ContrastiveSearch(), max_new_tokens=64)
    finally:
        running.stop()
