"""``decoding play``: what it serves, to whom, and wrong options."""

from __future__ import annotations

import importlib.util
import re
import socket
import urllib.error
import urllib.request
from typing import Any

import pytest

from decoding.cli.play import is_loopback
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.play import playground as playgrounds

EMBEDDED = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded models have not been trained here"
)


def refused(capfd: pytest.CaptureFixture[str], *arguments: str) -> str:
    assert main(["play", *arguments]) == 2
    out, err = capfd.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    return err


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_addresses_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "example.org", ""])
def test_addresses_that_others_reach(host: str) -> None:
    assert not is_loopback(host)


def test_without_gradio_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'contrastive-decoding[play]'" in refused(capfd)


def test_wrong_options_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")
    assert "--model: is empty" in refused(capfd, "--model", " ")
    assert "--port" in refused(capfd, "--port", "70000")
    assert "--max-new-tokens" in refused(capfd, "--max-new-tokens", "0")
    assert "no-such-device" in refused(capfd, "--device", "no-such-device")


@EMBEDDED
def test_it_listens_where_it_is_told_and_says_so(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gradio = pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")
    made: list[playgrounds.Playground] = []
    first = playgrounds.Playground.load_first
    monkeypatch.setattr(playgrounds.Playground, "load_first", lambda self: (made.append(self), first(self)))
    answers: list[Any] = []

    def visit(page: Any) -> None:
        """In the place of waiting for Ctrl-C."""
        with urllib.request.urlopen(page.local_url) as answer:
            answers.append((page.local_url, answer.status, answer.read().decode()))
        assert capfd.readouterr().out == f"{page.local_url} (Ctrl-C ends it)\n"
        assert "cannot listen at 127.0.0.1:" in refused(capfd, "--port", str(page.server_port))
        page.close(verbose=False)

    monkeypatch.setattr(gradio.Blocks, "block_thread", visit)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    assert main(["play", "--model", "amateur", "--port", str(port), "--max-prompt", "7", "--max-new-tokens", "9"]) == 0
    ((address, status, html),) = answers
    assert (address, status) == (f"http://127.0.0.1:{port}/", 200)
    assert "Decoding strategies side by side" in html
    assert not re.search(r"fonts\.googleapis|cdnjs|gradio\.s3", html)
    limits = made[0].limits
    assert (made[0].models, limits.prompt, limits.new_tokens) == (("amateur",), 7, 9)
    assert not limits.only_named_models
