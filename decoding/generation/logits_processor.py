"""Any strategy as a logits processor of plain ``model.generate``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from transformers import LogitsProcessor

from decoding.capabilities.cuda_graphs import request_cuda_graphs
from decoding.errors import InputError, OptionError, shown
from decoding.generation.caller import arguments_of_generate
from decoding.generation.session import Session, argmax_first
from decoding.models.forward_errors import not_a_number, within_memory
from decoding.models.inputs import check_inputs, prompts_among, repeated_inputs, with_named_inputs
from decoding.models.segments import check_one_segment, cuts_segments, of_segment
from decoding.models.wrappers import unwrapped
from decoding.stream.prepare import prepare_inputs

__all__ = ["StrategyLogitsProcessor"]

FRAMES = 12  # between a processor and generate(): the list of processors, the search, and what decorates them


class StrategyLogitsProcessor(LogitsProcessor):
    """Replaces the scores of ``generate`` by a strategy's, from a session that is kept in step with ``input_ids``.

    Rows that beam search reorders are found again by their tokens; a sequence that does not continue the last one
    begins a new session. Processors before this one act on the logits that the strategy is given, those after it on
    its scores.

    Args:
        strategy: the strategy.
        model: the model that ``generate`` is called on.
        compile: capture the steps of the processor's session; see :func:`decoding.generate`.
        inputs: see :meth:`decoding.generation.strategy.Strategy.logits_processor`.
    """

    supports_continuous_batching = False  # requests that come and go in one batch have no session

    def __init__(self, strategy: Any, model: Any, compile: bool = False, **inputs: Any) -> None:
        if isinstance(strategy, type) or not callable(getattr(strategy, "opener", None)):
            raise OptionError(
                f"strategy={shown(strategy)}: must be a strategy such as decoding.ContrastiveSearch(), as an object: a "
                "processor decodes nothing itself, and text may ask for sampling or beams"
            )
        model = unwrapped(model)
        _, inputs = with_named_inputs(None, inputs)
        strategy.check(model)
        if model.config.is_encoder_decoder:
            main = model.get_encoder().main_input_name  # pixel_values, input_features, ...
            if not any(
                inputs.get(name) is not None for name in (main, "input_ids", "encoder_outputs", "inputs_embeds")
            ):
                raise InputError(
                    f"{type(model).__name__} is an encoder-decoder: its processor needs the encoder's {main} "
                    "(and attention_mask)"
                )
        self.strategy = strategy
        self.model = model
        self.compile = compile
        self.inputs = inputs
        self.session: Session | None = None
        self.seen_ids: Tensor | None = None  # (rows, length) of the session's last call

    @torch.no_grad()
    def __call__(self, input_ids: Tensor, scores: Tensor) -> Tensor:
        """(rows, vocab) the strategy's scores for the next token, dtype of ``scores``.

        Raises:
            InputError: the scores given are NaN, or tokens or scores are no tensors of these shapes.
            ModelError: the strategy's scores are NaN, though those that it was given are not.
            DecodingError: any other error of the strategy.
        """
        _check_arguments(input_ids, scores)
        with within_memory(self.model, f"{len(input_ids)} rows of {input_ids.shape[1]} tokens"):
            session = self._in_step_with(input_ids)
            rescored = session.rescored(input_ids, scores).to(scores.dtype)
        broken = rescored.amax(-1).isnan()
        if bool(broken.any()):
            row = int(broken.nonzero()[0])
            if bool(scores[row].isnan().any()):
                raise InputError(
                    f"the scores given to the processor are NaN (row {row}): the model's logits are, or a processor "
                    "before this one makes them so"
                )
            raise not_a_number(self.model, "model", row)
        return rescored

    def __del__(self) -> None:
        self.release()

    def release(self) -> None:
        """Free the session and its cache; the next call begins another.

        A processor is not told when ``generate`` ends, so it holds the session of its last call until this is called,
        until its next call, or until it is garbage-collected.
        """
        session, self.session, self.seen_ids = getattr(self, "session", None), None, None
        if session is not None:
            session.release()

    def _in_step_with(self, input_ids: Tensor) -> Session:
        rows = self._parents(input_ids)
        if self.session is None or rows is None:
            self.release()  # before the next session's cache is made
            self.session = self._begin(input_ids)
        else:
            if bool((rows != torch.arange(len(rows), device=rows.device)).any()):
                self.session.reorder(rows)
            self.session.follow(input_ids[:, -1])
        self.seen_ids = input_ids.clone()
        return self.session

    def _parents(self, input_ids: Tensor) -> Tensor | None:
        """(rows,) index of the session's row that each row continues by one token; None where one continues none."""
        seen_ids = self.seen_ids
        if seen_ids is None or input_ids.shape != (seen_ids.shape[0], seen_ids.shape[1] + 1):
            return None
        same = (input_ids[:, None, :-1] == seen_ids[None]).all(-1)  # (rows, session rows)
        in_place = same.diagonal()
        rows = torch.where(in_place, torch.arange(len(seen_ids), device=seen_ids.device), argmax_first(same))
        return rows if bool(same.any(1).all()) else None

    def _begin(self, input_ids: Tensor) -> Session:
        own = self._of_call()
        times = len(input_ids) // prompts_among(own, len(input_ids))
        inputs = repeated_inputs(self.model, input_ids[::times], own, times)
        given = dict(own)
        if self.model.config.is_encoder_decoder:
            inputs["decoder_input_ids"] = input_ids
        else:
            inputs["attention_mask"] = self._mask(input_ids, inputs.get("attention_mask"))
            inputs["input_ids"], given["input_ids"] = input_ids, input_ids[::times]
            check_inputs(self.model, input_ids, inputs)
        prepared, model_kwargs, config = prepare_inputs(self.model, **inputs)
        request_cuda_graphs(config, self.compile)
        open_session = self.strategy.opener(given, rescoring=True)
        return open_session(self.model, prepared, model_kwargs, config)

    def _of_call(self) -> dict[str, Any]:
        """The inputs of the call of ``generate`` that runs the processor: of Whisper, those of the segment that is
        decoded, of the rows that are not finished.
        """
        if not cuts_segments(self.model):
            return self.inputs
        own = of_segment(self.model, self.inputs)
        call = arguments_of_generate(FRAMES).get("given")
        if call is not None and isinstance(call["inputs"], Tensor):
            own["input_features"] = call["inputs"]
            if call.get("decoder_attention_mask") is not None:
                own["decoder_attention_mask"] = call["decoder_attention_mask"]
        else:
            check_one_segment(self.model, own, "only its own generate() cuts them; give those of one segment")
        return own

    def _mask(self, input_ids: Tensor, mask: Tensor | None) -> Tensor:
        if mask is not None:
            missing = input_ids.shape[1] - mask.shape[1]
            if missing < 0 or len(mask) != len(input_ids):
                raise InputError(
                    f"attention_mask {tuple(mask.shape)} does not fit input_ids {tuple(input_ids.shape)}: "
                    "give that of the prompt"
                )
            return torch.nn.functional.pad(mask, (0, missing), value=1)
        config = self.model.generation_config
        pad = config.pad_token_id
        if pad is None:
            return torch.ones_like(input_ids)
        padding = (input_ids == pad).long().cumprod(dim=1)  # the run of pad tokens that a row begins with
        eos = config.eos_token_id
        if bool(padding.any()) and pad in {config.bos_token_id, *(eos if isinstance(eos, list) else [eos])}:
            raise InputError(
                f"a row begins with token {pad}, which is the pad token and the bos or eos token too: pass "
                "attention_mask=... to the processor, so that it can tell padding from text"
            )
        return 1 - padding


def _check_arguments(input_ids: Any, scores: Any) -> None:
    """Raise InputError where the arguments are not those that ``generate`` calls a processor with."""
    for name, given in (("input_ids", input_ids), ("scores", scores)):
        if not isinstance(given, Tensor) or given.dim() != 2:
            kind = f"{tuple(given.shape)}" if isinstance(given, Tensor) else f"a {type(given).__name__}"
            width = "length" if name == "input_ids" else "vocab"
            raise InputError(f"{name} of a logits processor must be a tensor (rows, {width}), and is {kind}")
    if not scores.is_floating_point() or len(scores) != len(input_ids):
        raise InputError(
            f"scores {tuple(scores.shape)} of {str(scores.dtype).removeprefix('torch.')}: must be floats, one row for "
            f"each of the {len(input_ids)} of input_ids"
        )
