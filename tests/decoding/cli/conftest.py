"""A tiny model of words in a folder, and ``decoding generate`` on it."""

import pytest
from word_models import llama, save

from decoding.cli.app import run


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
