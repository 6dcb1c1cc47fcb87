"""Whether a model's lower layers can be left at: DoLa on it against full recomputation.

Every text is read from its first token, without a cache or a batch. What a model would say if it ended after some of
its layers is what it does say while the others hand on what they are given; what its head says of a raw state is that
of the ``hidden_states`` which it returns. Nothing here is shared with the way in which the library decodes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

import decoding
from decoding.errors import DecodingError, ModelError
from decoding.evals.architectures.tiny import VOCAB
from decoding.loading import one_line

__all__ = ["EarlyExits", "check", "left_padded", "prompts"]

STEPS = 5
LENGTHS = (6, 19)  # of the prompts: one within the tiny models' window of 8 tokens, and one beyond it
ALPHA = 0.1
# Between log-probabilities of a batch with a cache and those of one text without: float32 sums in another order.
CLOSE = 2e-3
SEEDS = 3  # of prompts: where two layers diverge equally, to float32, from the last, the choice of one is left open


@dataclass(frozen=True)
class EarlyExits:
    """What a check found.

    Attributes:
        exact: whether DoLa gave the tokens and scores of full recomputation.
        reason: what was compared, or why not.
    """

    exact: bool
    reason: str


def check(model: Any, **inputs: Any) -> EarlyExits:
    """Run DoLa over every lower layer on a batch of two prompts, the shorter one left-padded.

    Args:
        model: a tiny model.
        inputs: what its ``generate`` needs beside the text, one row.
    """
    depth = _depth(model)
    layers = tuple(range(1, depth)) or (0,)
    compared = []
    for final_norm in (True, False):
        reason: str | None = None
        for seed in range(SEEDS):
            rows = prompts(seed)
            try:
                got = _generated(model, rows, layers, final_norm, inputs)
            except DecodingError as refusal:
                return EarlyExits(False, one_line(refusal))
            reason = _difference(model, rows, got, layers, final_norm, inputs)
            if reason is None or reason == RAW_UNDEFINED:
                break
        if reason is not None and reason != RAW_UNDEFINED:
            return EarlyExits(False, f"DoLa differs from full recomputation: {reason}")
        if reason is None:
            compared.append("as if it ended there" if final_norm else "raw")
    return EarlyExits(True, f"{len(layers)} lower layers, read {' and '.join(compared)}")


RAW_UNDEFINED = "its head does not read the states between its layers as they are"


def prompts(seed: int) -> list[list[int]]:
    """Two texts of ``LENGTHS`` tokens."""
    generator = torch.Generator().manual_seed(seed)
    return [torch.randint(10, VOCAB, (length,), generator=generator).tolist() for length in LENGTHS]


def left_padded(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """Token ids (rows, length) and their attention mask."""
    longest = max(map(len, rows))
    ids = torch.tensor([[0] * (longest - len(row)) + list(row) for row in rows])
    return ids, torch.tensor([[0] * (longest - len(row)) + [1] * len(row) for row in rows])


def _generated(
    model: Any, rows: list[list[int]], layers: tuple[int, ...], final_norm: bool, inputs: dict[str, Any]
) -> tuple[Tensor, Tensor]:
    """New tokens (rows, steps) and their scores (rows, steps, vocab) as the library makes them."""
    ids, mask = left_padded(rows)
    batch = {name: value.repeat(len(rows), *[1] * (value.dim() - 1)) for name, value in inputs.items()}
    output = decoding.generate(
        model, input_ids=ids, attention_mask=mask, **batch, max_new_tokens=STEPS,
        strategy=decoding.DoLa(layers, ALPHA, final_norm=final_norm),
        pad_token_id=0, output_scores=True, return_dict_in_generate=True,
    )  # fmt: skip
    return output.sequences[:, -STEPS:], torch.stack(output.scores, dim=1)


def _difference(
    model: Any,
    rows: list[list[int]],
    got: tuple[Tensor, Tensor],
    layers: tuple[int, ...],
    final_norm: bool,
    inputs: dict[str, Any],
) -> str | None:
    """Where tokens or scores are not those of full recomputation; None where all are."""
    longest = max(map(len, rows))
    for row, prompt in enumerate(rows):
        reasons = []
        # A model may itself read a text otherwise behind padding; then that reading is the one to equal.
        for padding in dict.fromkeys((0, longest - len(prompt))):
            reasons.append(
                _row_difference(model, prompt, padding, got[0][row], got[1][row], layers, final_norm, inputs)
            )
            if reasons[-1] in (None, RAW_UNDEFINED):
                break
        if reasons[-1] is not None:
            return reasons[-1] if reasons[-1] == RAW_UNDEFINED else f"row {row}, {reasons[0]}"
    return None


def _row_difference(
    model: Any,
    prompt: list[int],
    padding: int,
    tokens: Tensor,
    scores: Tensor,
    layers: tuple[int, ...],
    final_norm: bool,
    inputs: dict[str, Any],
) -> str | None:
    text = list(prompt)
    for step, token in enumerate(tokens.tolist()):
        final, states, spoken = _read(model, text, padding, inputs)
        if final_norm:
            early = [_read_ended_after(model, layer, text, padding, inputs) for layer in layers]
        else:
            early = _raw_logits(model, states, layers, spoken)
            if early is None:
                return RAW_UNDEFINED
        expected = _dola(final.double(), [each[: len(final)].double() for each in early])
        if not expected[token] > expected.max() - CLOSE:
            return f"step {step}: token {token}, not {int(expected.argmax())}"
        both = expected.isfinite() & scores[step].isfinite()
        error = float((expected - scores[step].double())[both].abs().max())
        if error > CLOSE:
            return f"step {step}: scores are {error:.1e} off"
        text.append(token)
    return None


def _dola(final: Tensor, early: Sequence[Tensor]) -> Tensor:
    """Scores (vocab,) of one step: log p_N - log p_j where p_N >= α·max p_N, j the layer that diverges most.

    Source: Chuang et al., 2309.03883; the divergence is that of its public code, ½[KL(M‖p_N) + KL(M‖p_j)].
    """
    last = final.log_softmax(-1)
    divergences = []
    for each in early:
        other = each.log_softmax(-1)
        mean = torch.logaddexp(last, other) - math.log(2)
        divergences.append(float((mean.exp() * (2 * mean - last - other)).sum() / 2))
    chosen = early[max(range(len(early)), key=lambda i: divergences[i])].log_softmax(-1)
    return (last - chosen).masked_fill(last.exp() < ALPHA * last.exp().max(), -math.inf)


@torch.no_grad()
def _read(model: Any, text: list[int], padding: int, inputs: dict[str, Any]) -> tuple[Tensor, list[Tensor], Tensor]:
    """Logits (vocab,) after a text; of its last token the model's ``hidden_states``, and what its head was given."""
    ids, mask = left_padded([text, [0] * (len(text) + padding)])
    given: list[Tensor] = []
    handle = model.get_output_embeddings().register_forward_pre_hook(lambda _module, args: given.append(args[0]))
    try:
        output = model.generate(
            input_ids=ids[:1], attention_mask=mask[:1], **inputs, max_new_tokens=1, do_sample=False, use_cache=False,
            pad_token_id=0, output_logits=True, output_hidden_states=True, return_dict_in_generate=True,
        )  # fmt: skip
    finally:
        handle.remove()
    return output.logits[0][0].float(), [states[0, -1] for states in output.hidden_states[0]], given[-1][0, -1]


def _raw_logits(model: Any, states: Sequence[Tensor], layers: Sequence[int], spoken: Tensor) -> list[Tensor] | None:
    """What the output embeddings say of states between layers; None where they do not read such states.

    They do where the last of the states, up to a scale, is what they were given.
    """
    head = model.get_output_embeddings()
    if any(states[layer].shape != spoken.shape for layer in (*layers, -1)):
        return None
    if float(torch.nn.functional.cosine_similarity(states[-1], spoken, dim=0)) < 1 - 1e-5:
        return None
    return [head(states[layer]) for layer in layers]


def _read_ended_after(model: Any, layer: int, text: list[int], padding: int, inputs: dict[str, Any]) -> Tensor:
    """Logits (vocab,) after a text, while the layers from ``layer`` on hand on what they are given."""

    def hand_on(_module: nn.Module, inputs: tuple[Any, ...], named: dict[str, Any], output: Any) -> Any:
        given = inputs[0] if inputs else named["hidden_states"]
        return given if isinstance(output, Tensor) else (given, *output[1:])

    handles = [each.register_forward_hook(hand_on, with_kwargs=True) for each in _layers(model)[layer:]]
    try:
        return _read(model, text, padding, inputs)[0]
    finally:
        for handle in handles:
            handle.remove()


def _depth(model: Any) -> int:
    return model.config.get_text_config(decoder=True).num_hidden_layers


def _layers(model: Any) -> nn.ModuleList:
    """The decoder's layers: the first list of modules of that many."""
    depth = _depth(model)
    parts = [*model.get_decoder().modules(), *model.modules()]
    found = next((each for each in parts if isinstance(each, nn.ModuleList) and len(each) == depth), None)
    if found is None:
        raise ModelError(f"{type(model).__name__}: no list of {depth} layers")
    return found
