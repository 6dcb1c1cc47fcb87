"""How well the lower layers of a model predict its own text: whether an early exit tells anything, or is noise.

DoLa contrasts the last layer with lower ones by the head alone, as its authors' code does. That was made on models
whose raw hidden states the head can read. Those of others are many times as long as the head expects: the exit is sure
of a token that has nothing to do with the text, and a contrast with it chooses by chance among the plausible tokens.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch

from decoding.capabilities.capabilities import open_stream
from decoding.errors import ModelError
from decoding.models.inputs import context_of
from decoding.models.probe import probe_inputs
from decoding.models.text_config import vocab_size
from decoding.stream.forward import ForwardPasses

__all__ = ["ExitQuality", "exit_quality"]

TOKENS = 48  # of greedy text after the probe, none of which ends it; fewer where the model's context ends before


@dataclass(frozen=True)
class ExitQuality:
    """Nats per token that exits give a text which the model wrote by greedy search.

    Attributes:
        exits: numbers of layers after which they are, ascending.
        bare: of each exit, the head applied to the raw hidden state.
        normed: the same after the model's final norm.
        chance: nats of a uniform guess, log of the vocabulary.
    """

    exits: tuple[int, ...]
    bare: tuple[float, ...]
    normed: tuple[float, ...]
    chance: float

    def noisy(self, final_norm: bool = False) -> tuple[int, ...]:
        """Return the exits, with or without the final norm, that predict the text no better than a uniform guess."""
        figures = zip(self.exits, self.normed if final_norm else self.bare, strict=True)
        return tuple(exit_ for exit_, nats in figures if not nats < self.chance)


@torch.no_grad()
def exit_quality(model: Any, exits: Sequence[int]) -> ExitQuality:
    """Let a model write a short text, and read it with early exits.

    Args:
        model: a decoder-only transformers model whose lower layers can be read.
        exits: numbers of layers after which to exit, at least one.

    Raises:
        ModelError: the model's layers cannot be read, or its context has no room for a text.
        OptionError: an exit that it does not have.
    """
    exits = sorted(set(exits))
    passes = ForwardPasses(model, exits)
    prompt = probe_inputs(model)["input_ids"]
    text = _greedy_text(model, prompt, _room(model, prompt.shape[1]))
    output, _ = passes.run({"input_ids": text, "use_cache": False}, 1, 0, every_logit=True)
    written = slice(prompt.shape[1] - 1, text.shape[1] - 1)  # the positions whose next tokens the model wrote
    targets = text[0, written.start + 1 :]

    def nats(states: torch.Tensor, final_norm: bool) -> float:
        logits = passes.structure.exit_logits(model, states[:, written], final_norm)[0]
        return float(torch.nn.functional.cross_entropy(logits.float(), targets.to(logits.device)))

    vocab = vocab_size(model)
    bare, normed = (tuple(nats(states, norm) for states in output.exits) for norm in (False, True))
    return ExitQuality(tuple(exits), bare, normed, math.log(vocab))


def _room(model: Any, length: int) -> int:
    """How many tokens to write after a prompt of ``length``."""
    context = context_of(model)
    if context is not None and context <= length:
        raise ModelError(f"{type(model).__name__} reads {context} tokens; exits need more than {length}")
    return TOKENS if context is None else min(TOKENS, context - length)


def _greedy_text(model: Any, prompt: torch.Tensor, tokens: int) -> torch.Tensor:
    """A prompt (1, length) and the tokens that follow it, but for those that end a text.

    Not by ``generate()``, which does what the model's own generation config says beside the call's: it returns other
    things than tokens, several texts, or none.
    """
    stream = open_stream(model, input_ids=prompt)
    logits, text = stream.logits(stream.prompt), prompt
    ends = model.generation_config.eos_token_id
    never = torch.tensor([] if ends is None else ends, dtype=torch.long, device=logits.device).reshape(-1)
    never = never[(never >= 0) & (never < logits.shape[-1])]  # GPT-2's default of 50256 ends no text of a small one
    for left in reversed(range(tokens)):
        token = logits.index_fill(-1, never, -math.inf).argmax(-1, keepdim=True).to(text.device)
        text = torch.cat([text, token], dim=-1)
        if left:
            logits = stream.logits(stream.extend(token))
    return text
