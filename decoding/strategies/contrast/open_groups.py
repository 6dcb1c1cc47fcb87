"""Opens the streams of a call's readers: which of them share one, and what each reads before the first new token."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.modeling_outputs import BaseModelOutput

from decoding.capabilities.capabilities import left_padded, open_prepared_stream
from decoding.capabilities.chunked_prefill import why_not_chunked
from decoding.capabilities.cuda_graphs import cuda_graphs_requested, request_cuda_graphs
from decoding.errors import InputError, ModelError
from decoding.models.devices import input_device
from decoding.models.inputs import check_inputs, context_of
from decoding.models.row_variants import RowVariants
from decoding.models.text_config import placeholder_tokens
from decoding.strategies.contrast.encoded_images import joined_encodings
from decoding.strategies.contrast.reader_group import (
    ReaderGroup,
    ReaderHead,
    may_fuse_expert,
    may_fuse_rows,
    row_variants,
)
from decoding.strategies.contrast.reader_inputs import (
    CallInputs,
    ReaderInputs,
    call_inputs,
    joined_inputs,
    reader_inputs,
    signature,
)
from decoding.strategies.contrast.readers import EXPERT, Reader, prompt_read, prompts_of
from decoding.stream.prepare import prepare_inputs
from decoding.transformers_private import ENCODED, PIXELS, cache_in

__all__ = ["Call", "open_groups"]

CHUNK = 64  # tokens; in chunks of 32 a prompt of 512 took a third longer to read


@dataclass(frozen=True)
class Call:
    """What one call of ``generate`` was given.

    Attributes:
        model: the generating model.
        input_ids: (batch, length) the prompt, as ``generate`` prepares it; of an encoder-decoder the decoder's.
        model_kwargs: likewise; the expert's stream owns it.
        config: of the call.
        given: the keyword arguments of ``generate`` as the caller gave them.
        restorable: see :class:`decoding.stream.stream.Stream`.
    """

    model: Any
    input_ids: Tensor
    model_kwargs: dict[str, Any]
    config: GenerationConfig | None
    given: Mapping[str, Any] = field(default_factory=dict)
    restorable: bool = False

    @property
    def batch(self) -> int:
        """Rows of the prompt."""
        return self.input_ids.shape[0]

    @property
    def new_tokens(self) -> int:
        """The number of tokens that the call may add, the last of which no reader reads; 1 where it does not say."""
        if self.config is None or self.config.max_length is None:
            return 1
        return max(1, int(self.config.max_length) - self.input_ids.shape[1])

    @property
    def is_pair(self) -> bool:
        """True of an encoder-decoder."""
        return bool(self.model.config.is_encoder_decoder)

    @property
    def use_cache(self) -> bool:
        """Whether readers keep what they have read."""
        return self.model_kwargs.get("use_cache") is not False


@dataclass(frozen=True)
class _Opening:
    """A reader with what it reads.

    Attributes:
        reader: the reader.
        rows: the tokens of each row.
        inputs: its inputs beside them.
        encoded: what ``generate`` has encoded of these, where they are the call's own; None where it is not known.
        may_encode: True where they can be encoded apart from those of other readers.
    """

    reader: Reader
    rows: list[list[int]]
    inputs: ReaderInputs
    encoded: Mapping[str, Any] | None = None
    may_encode: bool = False


def open_groups(call: Call, readers: Sequence[Reader], fuse: bool) -> Iterator[ReaderGroup]:
    """Open the streams of readers, those with the same weights as rows of one where their inputs allow it.

    Args:
        call: what was given.
        readers: at least one; the expert first where it is among them.
        fuse: False opens a stream for each reader.

    Raises:
        InputError: a reader that cannot read this prompt, or is not given what it needs.
        ModelError: a model that has no early exits, or adapters that cannot share a batch.
    """
    expert = next((reader for reader in readers if reader.role == EXPERT), None)
    others = [reader for reader in readers if reader is not expert]
    if not others:
        assert expert is not None
        yield _open_expert(call, expert, others)
        return
    given = call_inputs(call.model, call.given, call.batch)
    mask = "decoder_attention_mask" if call.is_pair else "attention_mask"
    prompts = prompts_of(call.input_ids, call.model_kwargs, given, mask)
    openings = [_opening(call, given, prompts, reader, readers) for reader in others]
    cache = cache_in(call.model_kwargs)
    fuse_same = fuse and may_fuse_rows(call.model, cache, readers)
    together = fuse_same and may_fuse_expert(
        call.model, call.model_kwargs, call.config, call.restorable,
        known=set(given), computed_positions=call.given.get("position_ids") is None,
    )  # fmt: skip
    of_expert = None
    if expert is not None and together:
        of_expert = _opening(call, given, prompts, expert, readers)
    groups = list(_groups(openings, fuse_same))
    joins = next((group for group in groups if of_expert is not None and _fits(of_expert, group[0])), None)
    if expert is not None and joins is None:
        yield _open_expert(call, expert, others)
    for group in groups:
        members = [of_expert, *group] if of_expert is not None and group is joins else group
        yield (_open_pair if call.is_pair else _open)(call, members, readers)


def _groups(openings: Sequence[_Opening], fuse: bool) -> Iterator[list[_Opening]]:
    """Readers that share a stream: with the same weights, and inputs that can be joined."""
    groups: list[list[_Opening]] = []
    for opening in openings:
        group = next((group for group in groups if fuse and _fits(opening, group[0])), None)
        if group is None:
            groups.append([opening])
        else:
            group.append(opening)
    yield from groups


def _fits(one: _Opening, other: _Opening) -> bool:
    return one.reader.model is other.reader.model and signature(one.inputs) == signature(other.inputs)


def _opening(
    call: Call, given: CallInputs, prompts: list[list[int]], reader: Reader, every: Sequence[Reader]
) -> _Opening:
    model = reader.model or call.model
    if call.is_pair:
        return _opening_of_pair(call, given, prompts, reader, every)
    own = dict(given) if reader.change is None else reader.change.inputs(given, model)
    rows = [prompt_read(reader, prompt, row, model) for row, prompt in enumerate(prompts)]
    placeholders = placeholder_tokens(model)
    if placeholders and not any(token in placeholders for row in rows for token in row):
        own = {}  # nothing in the text stands for what is seen or heard
    _check_accepted(call, model, reader, own)
    shape = (call.input_ids.shape[0], call.input_ids.shape[1])
    typed = bool(placeholders)
    fitted = reader_inputs(reader.role, own, shape, prompts, rows, typed)
    known = call.model_kwargs.get(ENCODED)
    if not known or reader.model is not None or given.times > 1 or not any(name in own for name in PIXELS):
        return _Opening(reader, rows, fitted)
    same = own.keys() == given.keys() and all(own[name] is given[name] for name in own)
    return _Opening(
        reader, rows, fitted, dict(known) if same else None, may_encode=joined_encodings([known]) is not None
    )


def _check_accepted(call: Call, model: Any, reader: Reader, inputs: Mapping[str, Any]) -> None:
    """Refuse a reader whose model does not take an input that it would be given.

    Raises:
        InputError: names the input.
        ModelError: one of the two models is an encoder-decoder, and the other is not.
    """
    if reader.model is None:
        return
    if bool(model.config.is_encoder_decoder) != call.is_pair:
        kinds = ["decoder-only", "an encoder-decoder"]
        raise ModelError(
            f"{reader.role}: {type(model).__name__} is {kinds[not call.is_pair]} and the expert, "
            f"{type(call.model).__name__}, is {kinds[call.is_pair]}; both must be of one kind"
        )
    known = inspect.signature(model.forward).parameters
    for name in sorted(inputs):
        if name not in known:
            raise InputError(
                f"{name}: the expert alone would get it, since {type(model).__name__}, the {reader.role}, does not "
                "take it: leave it out, or give a reader that does"
            )


def _open_expert(call: Call, expert: Reader, others: Sequence[Reader]) -> ReaderGroup:
    """Open the expert's own stream, on the inputs of the call as they are."""
    variants = row_variants(call.model, [expert], others, call.batch)
    stream = open_prepared_stream(
        call.model, call.input_ids, call.model_kwargs, call.config, restorable=call.restorable,
        exits=expert.exits, variants=variants, whole_prompt=False,
    )  # fmt: skip
    return ReaderGroup(stream, ReaderHead(stream.model, stream.structure, [expert], call.batch), [0])


def _open(call: Call, openings: Sequence[_Opening], every: Sequence[Reader]) -> ReaderGroup:
    """Open the stream of readers with the same weights; rows of several lengths are padded on the left."""
    readers, model = [opening.reader for opening in openings], openings[0].reader.model or call.model
    rows = [row for opening in openings for row in opening.rows]
    limit = _checked_lengths(call, model, readers, rows)
    width = max(map(len, rows))
    ids, mask = left_padded(rows, input_device(model))
    check_inputs(model, ids, {"attention_mask": mask})
    beside = _beside(call, model, openings, width)
    inputs, kwargs, config = prepare_inputs(
        model, input_ids=ids, attention_mask=mask, use_cache=call.use_cache, **beside
    )
    chunk_size = (call.config or call.model.generation_config).prefill_chunk_size
    if chunk_size is not None:
        config.prefill_chunk_size = chunk_size
    elif len(readers) > 1 and cache_in(kwargs) is not None and not beside:
        # In chunks, the activations of all rows together need less memory than those of one row would.
        chunk_size = max(CHUNK, width // (4 * len(rows)))
        if chunk_size < width and not why_not_chunked(model, chunk_size, padded=not bool(mask.all())):
            config.prefill_chunk_size = chunk_size
    longest = [max(map(len, rows[i : i + call.batch])) for i in range(0, len(rows), call.batch)]
    padding = [width - length for length in longest]
    return _opened(call, model, readers, every, (inputs, kwargs, config), padding, limit)


def _beside(call: Call, model: Any, openings: Sequence[_Opening], width: int) -> dict[str, Any]:
    """The inputs beside the text of readers that share a pass. An image that several of them see is encoded once: what
    the call has encoded is handed on, and other images are encoded reader by reader.
    """
    beside = joined_inputs([opening.inputs for opening in openings], width)
    if not all(opening.may_encode for opening in openings):
        return beside
    alike = [next(i for i, first in enumerate(openings) if _see_the_same(opening, first)) for opening in openings]
    known = {i: opening.encoded for i, opening in zip(alike, openings, strict=True) if opening.encoded is not None}
    if not known and len(set(alike)) == len(openings):
        return beside  # nothing is encoded twice
    parts = {i: known.get(i) or _encoded(call, model, openings[i]) for i in dict.fromkeys(alike)}
    encoded = joined_encodings([parts[i] for i in alike])
    if encoded is None:
        return beside
    return {**{name: value for name, value in beside.items() if name not in PIXELS}, ENCODED: encoded}


def _see_the_same(one: _Opening, other: _Opening) -> bool:
    """True for readers of the same images: of the same inputs but for those of each token."""
    first, second = (
        {name: value for name, value in opening.inputs.items() if isinstance(value, Tensor)} for opening in (one, other)
    )
    return first.keys() == second.keys() and all(torch.equal(value, second[name]) for name, value in first.items())


def _encoded(call: Call, model: Any, opening: _Opening) -> Mapping[str, Any]:
    """What ``generate`` encodes of the images of one reader."""
    ids, mask = left_padded(opening.rows, input_device(model))
    own = joined_inputs([opening.inputs], ids.shape[1])
    _, kwargs, _ = prepare_inputs(model, input_ids=ids, attention_mask=mask, use_cache=call.use_cache, **own)
    encoded: Mapping[str, Any] = kwargs[ENCODED]
    return encoded


def _checked_lengths(call: Call, model: Any, readers: Sequence[Reader], rows: Sequence[Sequence[int]]) -> int | None:
    """The context of a model, which rows and new tokens must fit into; None where its config does not say.

    Raises:
        InputError: they do not.
    """
    limit = context_of(model)
    for index, row in enumerate(rows):
        if limit is not None and len(row) + call.new_tokens > limit:
            raise InputError(
                f"the {readers[index // call.batch].role}'s prompt has {len(row)} tokens, which with {call.new_tokens} "
                f"new ones is more than its context of {limit}: shorten the prompt or max_new_tokens"
            )
    return limit


def _opened(
    call: Call,
    model: Any,
    readers: Sequence[Reader],
    every: Sequence[Reader],
    prepared: tuple[Tensor, dict[str, Any], GenerationConfig],
    padding: Sequence[int],
    limit: int | None,
) -> ReaderGroup:
    inputs, kwargs, config = prepared
    config.max_length = inputs.shape[1] + call.new_tokens
    request_cuda_graphs(config, cuda_graphs_requested(call.config))
    variants = _variants(call, readers, every)
    exits = tuple(sorted({exit_ for reader in readers for exit_ in reader.exits}))
    stream = open_prepared_stream(
        model, inputs, kwargs, config,
        restorable=call.restorable, exits=exits, variants=variants, whole_prompt=False,
    )  # fmt: skip
    return ReaderGroup(stream, ReaderHead(stream.model, stream.structure, readers, call.batch), padding, limit)


def _variants(call: Call, readers: Sequence[Reader], every: Sequence[Reader]) -> RowVariants | None:
    """How the rows of readers are read; an adapter of one of the strategy's readers does not act on the others."""
    return None if readers[0].model is not None else row_variants(call.model, readers, every, call.batch)


# --- encoder-decoders ------------------------------------------------------------------------------------------------


def _opening_of_pair(
    call: Call, given: CallInputs, prompts: list[list[int]], reader: Reader, every: Sequence[Reader]
) -> _Opening:
    """What a reader of an encoder-decoder reads: its decoder's tokens, and the encoder's states."""
    model = reader.model or call.model
    if reader.prefix is not None or reader.prompt is not None:
        raise InputError(
            f"the {reader.role} reads a text beside the prompt, and in {type(model).__name__}, an encoder-decoder, the "
            "encoder reads the prompt: give it the encoder's inputs with decoding.Inputs(input_ids=...)"
        )
    rows = [prompt_read(reader, prompt, row, model) for row, prompt in enumerate(prompts)]
    own = dict(given) if reader.change is None else reader.change.inputs(given, model)
    same = own.keys() == given.keys() and all(own[name] is given[name] for name in own)
    if reader.role == EXPERT or (reader.model is None and reader.adapter is None and same):
        encoded = {name: call.model_kwargs.get(name) for name in ("encoder_outputs", "attention_mask")}
        return _Opening(reader, rows, _states(encoded))
    _check_accepted(call, model, reader, own)
    if not any(isinstance(value, Tensor) for name, value in own.items() if name != "attention_mask"):
        raise InputError(
            f"the {reader.role} needs the encoder's inputs as they were given to generate(), and they are not known "
            "here: call decoding.generate, or model.generate with custom_generate or the strategy's logits processor"
        )
    variants = _variants(call, [reader], every)
    start = torch.tensor(rows[0][:1], device=input_device(model)).expand(call.batch, 1)
    with nullcontext() if variants is None else variants.activated():  # an adapter may be on the encoder too
        _, kwargs, _ = prepare_inputs(model, decoder_input_ids=start, **own)
    return _Opening(reader, rows, _states(kwargs))


def _states(kwargs: Mapping[str, Any]) -> ReaderInputs:
    """The encoder's last hidden states, and the mask of its tokens."""
    states = kwargs["encoder_outputs"][0]
    mask = kwargs.get("attention_mask")
    if not isinstance(mask, Tensor) or mask.shape != states.shape[:2]:
        mask = torch.ones(states.shape[:2], dtype=torch.long, device=states.device)
    # A list, as of what is padded to the length of the longest.
    return {"states": list(states), "mask": list(mask)}


def _open_pair(call: Call, openings: Sequence[_Opening], every: Sequence[Reader]) -> ReaderGroup:
    """Open the stream of readers of an encoder-decoder, whose encoder has read; its states are padded on the right.
    Where the call's decoders begin with padding, so do the readers': what that does to positions, it does to all.
    """
    readers, model = [opening.reader for opening in openings], openings[0].reader.model or call.model
    rows = [row for opening in openings for row in opening.rows]
    limit = _checked_lengths(call, model, readers, rows)
    if len(set(map(len, rows))) > 1 and call.model_kwargs.get("decoder_attention_mask") is None:
        raise InputError("the readers' decoders begin with different numbers of tokens; give all rows the same number")
    ids, decoder_mask = left_padded(rows, input_device(model))
    states = [row for opening in openings for row in opening.inputs["states"]]
    masks = [row for opening in openings for row in opening.inputs["mask"]]
    encoded = torch.nn.utils.rnn.pad_sequence(states, batch_first=True)
    mask = torch.nn.utils.rnn.pad_sequence(masks, batch_first=True)
    named: dict[str, Any] = {"encoder_outputs": BaseModelOutput(last_hidden_state=encoded)}
    if not bool(mask.all()):
        named["attention_mask"] = mask
    if not bool(decoder_mask.all()):
        named["decoder_attention_mask"] = decoder_mask
    prepared = prepare_inputs(model, decoder_input_ids=ids, use_cache=call.use_cache, **named)
    longest = [max(map(len, rows[i : i + call.batch])) for i in range(0, len(rows), call.batch)]
    padding = [ids.shape[1] - length for length in longest]
    return _opened(call, model, readers, every, prepared, padding, limit)
