"""``decoding play``: what it serves, to whom, and wrong options."""

from __future__ import annotations

import importlib.util
import multiprocessing
import os
import re
import socket
import sys
import urllib.error
import urllib.request
from typing import Any

import pytest
from command_results import refused
from forked_process import after_fork

from decoding.cli.address import check_address, is_loopback
from decoding.errors import OptionError
from decoding.evals import miniature
from decoding.evals.cli import main
from decoding.play import playground as playgrounds

EMBEDDED = pytest.mark.skipif(
    not (miniature.folder("expert") / "config.json").is_file(), reason="the embedded models have not been trained here"
)


@pytest.mark.parametrize("host", ["127.0.0.1", "127.8.8.8", "::1", "localhost"])
def test_addresses_of_this_machine(host: str) -> None:
    assert is_loopback(host)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.4", "example.org", ""])
def test_addresses_that_others_reach(host: str) -> None:
    assert not is_loopback(host)


def test_where_it_cannot_listen_is_told_in_words_of_the_options(capfd: pytest.CaptureFixture[str]) -> None:
    with socket.socket() as other:
        other.bind(("127.0.0.1", 0))
        other.listen()
        port = other.getsockname()[1]
        for host in ("127.0.0.1", "0.0.0.0"):
            with pytest.raises(OptionError, match=f"^port {port} is in use; give another with --port$"):
                check_address(host, port)
    check_address("127.0.0.1", port)
    check_address("localhost", None)
    with pytest.raises(OptionError, match=r"^--host 192\.0\.2\.1: this machine has no such address; 127"):
        check_address("192.0.2.1", None)  # of a net for documentation
    with pytest.raises(OptionError, match=r"^--host a\.b\.invalid: is no address, and no name that is known here"):
        check_address("a.b.invalid", None)
    if importlib.util.find_spec("gradio") is not None:
        assert "--host 192.0.2.1: this machine has no such address" in refused(
            main(["play", "--host", "192.0.2.1"]), *capfd.readouterr()
        )


def test_without_gradio_it_says_how_to_get_it(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    assert "pip install 'contrastive-decoding[play]'" in refused(main(["play"]), *capfd.readouterr())


def test_wrong_options_are_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")
    assert "--model: is empty" in refused(main(["play", "--model", " "]), *capfd.readouterr())
    assert "--port" in refused(main(["play", "--port", "70000"]), *capfd.readouterr())
    assert "--max-new-tokens" in refused(main(["play", "--max-new-tokens", "0"]), *capfd.readouterr())
    assert "no-such-device" in refused(main(["play", "--device", "no-such-device"]), *capfd.readouterr())


def test_options_are_the_playgrounds(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")
    from decoding.play import page

    served: list[Any] = []
    monkeypatch.setattr(page, "serve", lambda *given: served.append(given))
    assert main(["play", "--model", "amateur", "--port", "7999", "--max-prompt", "7", "--max-new-tokens", "9"]) == 0
    ((playground, host, port),) = served
    assert (playground.models, host, port) == (("amateur",), "127.0.0.1", 7999)
    limits = playground.limits
    assert (limits.prompt, limits.new_tokens, limits.only_named_models) == (7, 9, False)


def test_an_address_that_is_taken_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    gradio = pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")

    def taken(*_: Any, **__: Any) -> None:
        raise OSError("Cannot find empty port in range: 7999-7999")

    monkeypatch.setattr(gradio.Blocks, "launch", taken)
    monkeypatch.setattr(playgrounds.Playground, "load_first", lambda self: None)
    assert "port 7999 is in use; give another with --port" in refused(
        main(["play", "--port", "7999"]), *capfd.readouterr()
    )


def play(port: int, out: int) -> None:
    """Be the process of ``decoding play``, which prints to a pipe alone."""
    os.dup2(out, 1)
    sys.stdout = os.fdopen(1, "w")  # buffered, as that of a process of its own
    after_fork()
    main(["play", "--port", str(port)])


@EMBEDDED
def test_it_listens_where_it_is_told_and_says_so() -> None:
    """As a process of its own: a fork of this one, which has imported torch and gradio already."""
    pytest.importorskip("gradio", reason="the page is made with gradio: the extra play")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"http://127.0.0.1:{port}/"
    printed, out = os.pipe()
    process = multiprocessing.get_context("fork").Process(target=play, args=(port, out))
    process.start()
    os.close(out)
    try:
        with os.fdopen(printed) as lines:
            assert lines.readline() == f"{address} (Ctrl-C ends it)\n"
            with urllib.request.urlopen(address) as answer:
                assert answer.status == 200
                html = answer.read().decode()
        assert "Decoding strategies side by side" in html
        assert not re.search(r"fonts\.googleapis|cdnjs|gradio\.s3", html)
    finally:
        process.kill()
        process.join()
