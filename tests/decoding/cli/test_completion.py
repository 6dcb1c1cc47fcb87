"""What a shell offers for the word that is being typed."""

from __future__ import annotations

import pytest

from decoding.evals.cli import main
from decoding.models.builtin import BUILT_IN
from decoding.models.releases import RELEASES
from decoding.strategies.registry import STRATEGIES


def offered(typed: str, shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> str:
    monkeypatch.setenv("_DECODING_COMPLETE", f"complete_{shell}")
    if shell == "bash":
        monkeypatch.setenv("COMP_WORDS", typed)
        monkeypatch.setenv("COMP_CWORD", str(typed.count(" ")))
    else:
        monkeypatch.setenv("_TYPER_COMPLETE_ARGS", typed)
        monkeypatch.setenv("_TYPER_COMPLETE_FISH_ACTION", "get-args")
    assert main([]) == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "words"),
    [
        ("decoding gen", ["generate"]),
        ("decoding eval kn", ["knowledge-conflict"]),
        ("decoding tune t", ["truthfulqa"]),
        ("decoding doctor --dev", ["--device", "--device-map"]),
        ("decoding generate --model e", ["expert"]),
        ("decoding generate --model s", ["smollm2-135m"]),
        ("decoding play --model expert --model a", ["amateur"]),
        ("decoding play --model ", [*BUILT_IN, *RELEASES]),
        ("decoding fetch ", list(RELEASES)),
        ("decoding fetch ge", ["gemma-3-270m"]),
        ("decoding metrics --model a", ["amateur"]),
        ("decoding generate --strategy contrastive-", ["contrastive-search", "contrastive-decoding"]),
        ("decoding compare --strategy greedy --strategy do", ["dola", "documents"]),
        ("decoding eval truthfulqa --strategy ", list(STRATEGIES)),
        ("decoding eval multilingual --strategy typ", ["typical"]),
        ("decoding serve --strategy do", ["dola", "documents"]),
        ("decoding export --strategy /", []),
    ],
)
def test_commands_options_strategies_and_models_are_offered(
    typed: str, words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert offered(typed, "bash", monkeypatch, capsys).split() == words


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_other_shells_are_offered_the_same(
    shell: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "adaptive-contrastive-search" in offered("decoding generate --strategy ad", shell, monkeypatch, capsys)
