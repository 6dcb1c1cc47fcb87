"""Several readings of one text side by side: the expert, the expert behind a guidance prompt, the amateur.

Readers that share weights are rows of one batch: one forward pass a token, one cache. A reader with weights of its own
is a second stream.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.cache_utils import DynamicCache

from decoding.adapters import MixedRows, adapters_of, expert_adapter
from decoding.cache import is_recurrent, is_sliding, layers_of
from decoding.capturable import capture_requested, request_capture
from decoding.errors import InputError, ModelError
from decoding.failures import not_a_number
from decoding.forest import Forest
from decoding.placement import input_device
from decoding.reading import Reading, joined, picked
from decoding.strategy import check_inputs
from decoding.stream import Stream

__all__ = ["EXPERT", "FusedStreams", "Heard", "Reader", "behind", "by_weights", "context_of"]

EXPERT = "expert"
CHUNK = 64  # tokens; in pieces of 32 a prompt of 512 took a third longer to read


@dataclass(frozen=True)
class Reader:
    """One of those who read the text.

    Attributes:
        role: what the strategy calls it; ``EXPERT`` is the generating model on the prompt as it is.
        model: whose weights; None for the generating model's.
        adapter: name of the LoRA adapter it reads with; None for none beside the active one.
        prefix: per row, tokens put before the prompt (behind its bos token); None for none.
        from_last_token: reads the prompt's last token only.
        exits: after how many layers it also leaves, ascending.
    """

    role: str
    model: Any = None
    adapter: str | None = None
    prefix: Sequence[Sequence[int]] | None = None
    from_last_token: bool = False
    exits: tuple[int, ...] = ()


@dataclass(frozen=True)
class Heard:
    """The next-token logits of one reader, in float32.

    Attributes:
        final: (..., vocab) after its last layer.
        exits: (exits, ..., vocab) after the lower layers asked for, ascending; None where none were.
    """

    final: Tensor
    exits: Tensor | None = None


@dataclass
class _Part:
    """One stream and its readers: rows ``i·batch`` to ``(i+1)·batch`` are those of reader i."""

    stream: Stream
    readers: list[Reader]
    padding: list[int] = field(default_factory=list)  # slots before the first token of each reader's longest row
    limit: int | None = None  # of the context, where going past it would be this library's doing


class FusedStreams:
    """All readers of one call, in step.

    Args:
        model: the generating model.
        readers: at least one; the expert first where it is among them.
        input_ids: (batch, length) the prompt, as ``generate`` prepares it.
        model_kwargs: likewise; the expert's stream owns it from here on.
        generation_config: of the call; its ``compile`` captures the steps of every part.
        restorable: see :class:`decoding.stream.Stream`.
        final_norm: of early exits, see :meth:`decoding.anatomy.Anatomy.all_logits`.
        fuse: whether readers with the same weights share a forward pass; False is for comparison.

    Raises:
        InputError: a reader that cannot read this prompt.
        ModelError: a model that gives no early exits, or adapters that cannot share a batch.
    """

    def __init__(
        self,
        model: Any,
        readers: Sequence[Reader],
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None = None,
        *,
        restorable: bool = False,
        final_norm: bool = True,
        fuse: bool = True,
    ) -> None:
        self.model = model
        self.batch = input_ids.shape[0]
        self.final_norm = final_norm
        self.step = 0
        self.parts: list[_Part] = []
        self.mixed: list[MixedRows] = []  # those of parts that could not be opened included: their hooks are to go
        expert = next((each for each in readers if each.role == EXPERT), None)
        others = [each for each in readers if each is not expert]
        prompts = _prompts(input_ids, model_kwargs, model) if others else []
        new = _new_tokens(generation_config, input_ids)
        compile = capture_requested(generation_config)
        fuse_same = fuse and not _recurrent(model_kwargs.get("past_key_values"))
        together = fuse_same and _may_fuse_expert(model, model_kwargs, generation_config, restorable)
        try:
            if expert is not None and not (together and any(each.model is None for each in others)):
                self._open_expert(expert, others, input_ids, model_kwargs, generation_config, restorable)
                expert = None
            for group in by_weights(others, fuse_same):
                if expert is not None and group[0].model is None:
                    group, expert = [expert, *group], None
                self._open(group, prompts, new, restorable, compile)
        except BaseException:
            self.release()
            raise

    def _open_expert(
        self,
        expert: Reader,
        others: list[Reader],
        input_ids: Tensor,
        model_kwargs: dict[str, Any],
        generation_config: GenerationConfig | None,
        restorable: bool,
    ) -> None:
        mixed = self._mixed([expert], others)
        stream = Stream(
            self.model, input_ids, model_kwargs, generation_config, restorable,
            exits=expert.exits, mixed=mixed, whole_prompt=False,
        )  # fmt: skip
        self.parts.append(_Part(stream, [expert], [0]))

    def _open(self, group: list[Reader], prompts: list[list[int]], new: int, restorable: bool, compile: bool) -> None:
        model = group[0].model or self.model
        rows = [behind(reader, prompt, row, model) for reader in group for row, prompt in enumerate(prompts)]
        limit = context_of(model)
        for index, row in enumerate(rows):
            reader = group[index // self.batch]
            if limit is not None and len(row) + new > limit:
                raise InputError(
                    f"the {reader.role}'s prompt has {len(row)} tokens, which with {new} new ones is more than its "
                    f"context of {limit}: shorten the prompt or max_new_tokens"
                )
        width = max(map(len, rows))
        ids = torch.tensor([[0] * (width - len(row)) + row for row in rows], device=input_device(model))
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows], device=input_device(model))
        check_inputs(model, ids, {"attention_mask": mask})
        mixed = self._mixed(group, group) if group[0].model is None else None
        exits = tuple(sorted({exit_ for reader in group for exit_ in reader.exits}))
        inputs, kwargs, config = Stream.prepare(model, input_ids=ids, attention_mask=mask)
        if len(group) > 1:
            # Read in pieces, so that the activations of all rows together need less room than those of one would.
            config.prefill_chunk_size = max(CHUNK, width // (4 * len(rows)))
        config.max_length = width + new
        request_capture(config, compile)
        stream = Stream(model, inputs, kwargs, config, restorable, exits=exits, mixed=mixed, whole_prompt=False)
        longest = [max(map(len, rows[i : i + self.batch])) for i in range(0, len(rows), self.batch)]
        self.parts.append(_Part(stream, group, [width - each for each in longest], limit))

    def _mixed(self, group: list[Reader], every: list[Reader]) -> MixedRows | None:
        """Which adapter each row reads with; None for a model without adapters."""
        if not adapters_of(self.model):
            return None
        amateur = next((each.adapter for each in every if each.adapter is not None), None)
        if amateur is None:
            return None
        own = expert_adapter(self.model, amateur)
        rows = MixedRows(self.model, [reader.adapter or own for reader in group for _ in range(self.batch)])
        self.mixed.append(rows)
        return rows

    # --- reading on -------------------------------------------------------------------------------------------------

    @property
    def prompt(self) -> list[Reading]:
        """What each part gave on its prompt."""
        return [part.stream.prompt for part in self.parts]

    @torch.no_grad()
    def extend(self, tokens: Tensor) -> list[Reading]:
        """Read (batch,) tokens in every part.

        Raises:
            InputError: a reader other than the expert alone has come to the end of its context.
        """
        self.step += 1
        readings = []
        for part in self.parts:
            if part.limit is not None and part.stream.length >= part.limit:
                raise InputError(
                    f"the text has come to the end of the {part.readers[-1].role}'s context of {part.limit} tokens: "
                    "ask for fewer new tokens"
                )
            readings.append(part.stream.extend(self._for_rows(part, tokens)[:, None]))
        return readings

    @torch.no_grad()
    def branch(self, tokens: Tensor) -> list[Reading]:
        """Read (batch, branches, n) alternative continuations in every part."""
        return [part.stream.branch(self._for_rows(part, tokens)) for part in self.parts]

    def _for_rows(self, part: _Part, tokens: Tensor) -> Tensor:
        vocab = part.stream.model.config.get_text_config(decoder=True).vocab_size
        # A finished row is given pad tokens, which may be nobody's; what it reads then is of no matter.
        tokens = tokens.to(part.stream.input_ids.device).clamp(0, vocab - 1)
        return tokens.repeat(len(part.readers), *[1] * (tokens.dim() - 1))

    @torch.no_grad()
    def heard(self, readings: list[Reading]) -> dict[str, Heard]:
        """The next-token logits of every reader, (batch, vocab), after the last token of these readings."""
        heard: dict[str, Heard] = {}
        for part, reading in zip(self.parts, readings, strict=True):
            last = tuple(states[:, -1] for states in reading.exits)
            given = None if reading.logits is None else reading.logits[:, -1]
            heard |= self._part_heard(part, reading.hidden[:, -1], last, given)
        self.check_numbers({role: each.final for role, each in heard.items()})
        return heard

    @property
    def side_by_side(self) -> bool:
        """Whether every part reads a forest in one pass of as many tokens as it has nodes."""
        return all(part.stream.side_by_side for part in self.parts)

    def lengths(self) -> Iterator[tuple[str, int, int | None]]:
        """Of each part its last reader's role, the tokens of its longest row so far, and its context."""
        for part in self.parts:
            yield part.readers[-1].role, part.stream.length - min(part.padding), context_of(part.stream.model)

    @torch.no_grad()
    def look(self, forest: Forest) -> list[Reading]:
        """Read texts that go on from here in every part, and keep none of them; needs ``restorable``.

        Returns:
            Of each part ``hidden``, ``exits`` and, where the head cannot be applied apart, ``logits`` (rows, 1 + nodes,
            ...): those after the prompt come first, then those of the forest's nodes.
        """
        readings = []
        for part in self.parts:
            prompt = part.stream.prompt
            given = None if part.stream.anatomy.separable or prompt.logits is None else prompt.logits[:, -1:]
            start = Reading(prompt.hidden[:, -1:], given, prompt.exits)
            readings.append(joined([start, part.stream.look(forest)]) if len(forest) else start)
        return readings

    @torch.no_grad()
    def heard_at(
        self, readings: list[Reading], places: Tensor, wanted: Mapping[tuple[str, bool], Sequence[int]]
    ) -> tuple[dict[str, Tensor], dict[tuple[str, bool], Tensor]]:
        """Logits at some places of readings of :meth:`look`, from one matrix product a part.

        Args:
            readings: of :meth:`look`.
            places: (n,) indices among their tokens.
            wanted: by role and whether lower layers pass the final norm, which of its reader's exits.

        Returns:
            By role the final logits (batch, n, vocab), and by role and norm those of the exits (exits, batch, n,
            vocab), in float32.
        """
        finals: dict[str, Tensor] = {}
        early: dict[tuple[str, bool], Tensor] = {}
        for part, reading in zip(self.parts, readings, strict=True):
            roles = [reader.role for reader in part.readers]
            groups = {key: tuple(exits) for key, exits in wanted.items() if key[0] in roles}
            given = None if reading.logits is None else _at(reading.logits, places)
            final, lower = self._part_logits(
                part, _at(reading.hidden, places), tuple(_at(states, places) for states in reading.exits), given,
                [(roles.index(role), norm, exits) for (role, norm), exits in groups.items()],
            )  # fmt: skip
            finals |= dict(zip(roles, final, strict=True))
            early |= dict(zip(groups, lower, strict=True))
        return finals, early

    def _part_heard(
        self, part: _Part, hidden: Tensor, exits: tuple[Tensor, ...], given: Tensor | None
    ) -> dict[str, Heard]:
        """What each reader of a part says, from hidden states (rows, ..., dim)."""
        leaving = [(i, self.final_norm, reader.exits) for i, reader in enumerate(part.readers) if reader.exits]
        final, early = self._part_logits(part, hidden, exits, given, leaving)
        lower = {i: logits for (i, *_), logits in zip(leaving, early, strict=True)}
        return {reader.role: Heard(final[i], lower.get(i)) for i, reader in enumerate(part.readers)}

    def _part_logits(
        self,
        part: _Part,
        hidden: Tensor,
        exits: tuple[Tensor, ...],
        given: Tensor | None,
        wanted: Sequence[tuple[int, bool, Sequence[int]]],
    ) -> tuple[list[Tensor], list[Tensor]]:
        """Logits of a part's readers, (batch, ..., vocab) each, and those of each (reader, norm, exits), (exits, batch,
        ..., vocab): one matrix product for all of them.
        """
        stream, found = part.stream, part.stream.anatomy
        order = self._exits(part)
        states: dict[bool, list[Tensor]] = {True: [], False: []}
        for i, norm, leaving in wanted:
            rows = slice(i * self.batch, (i + 1) * self.batch)
            # Of a model spread over devices each layer's states are on its own.
            states[norm] += [exits[order.index(exit_)][rows].to(hidden.device) for exit_ in leaving]
        if wanted:
            normed, bare = (torch.cat(states[norm]) if states[norm] else None for norm in (True, False))
            final, *lower = found.all_logits(stream.model, hidden, normed, bare)
            rest = dict(zip((True, False), lower, strict=True))
        else:
            final = found.logits(stream.model, hidden) if given is None else given
        early = []
        for _, norm, leaving in wanted:
            count = len(leaving) * self.batch
            early.append(rest[norm][:count].unflatten(0, (len(leaving), self.batch)).float())
            rest[norm] = rest[norm][count:]
        return [each.float() for each in final.split(self.batch)], early

    def _exits(self, part: _Part) -> list[int]:
        return sorted({exit_ for reader in part.readers for exit_ in reader.exits})

    def check_numbers(self, finals: Mapping[str, Tensor]) -> None:
        """Look at the final logits (batch, ..., vocab) of readers by role.

        Raises:
            ModelError: one of them is NaN.
        """
        for role, logits in finals.items():
            broken = logits.amax(-1).isnan()
            if bool(broken.any()):
                reader = next(each for part in self.parts for each in part.readers if each.role == role)
                model = reader.model or self.model
                raise not_a_number(model, role, int(broken.nonzero()[0, 0]), self.step)

    def expert_reading(self, readings: list[Reading]) -> Reading:
        """The expert's rows of the part that it belongs to."""
        for part, reading in zip(self.parts, readings, strict=True):
            if part.readers[0].role == EXPERT:
                return (
                    reading
                    if len(part.readers) == 1
                    else picked(reading, torch.arange(self.batch, device=reading.hidden.device))
                )
        raise InputError("the expert is not among the readers")

    # --- beams, ends ------------------------------------------------------------------------------------------------

    def reorder(self, rows: Tensor) -> None:
        """Make row i what row ``rows[i]`` was, in every part."""
        for part in self.parts:
            own = rows.to(part.stream.input_ids.device)
            part.stream.reorder(torch.cat([own + i * self.batch for i in range(len(part.readers))]))

    def close(self) -> Any:
        """The expert's cache, fit to be continued by plain ``generate``."""
        part = next(part for part in self.parts if part.readers[0].role == EXPERT)
        cache = part.stream.close()
        if len(part.readers) > 1:
            for layer in layers_of(cache):
                for name in ("keys", "values"):
                    entries = getattr(layer, name)
                    setattr(layer, name, entries[: self.batch, :, part.padding[0] :].clone())
        return cache

    def release(self) -> None:
        """Let go of everything large, and of what hangs on the model."""
        for part in self.parts:
            part.stream.release()
        for rows in self.mixed:
            rows.release()
        self.parts, self.mixed = [], []


def _at(states: Tensor, places: Tensor) -> Tensor:
    return states[:, places.to(states.device)]


def context_of(model: Any) -> int | None:
    """How many tokens a model can read; None where its config does not say."""
    context = getattr(model.config.get_text_config(decoder=True), "max_position_embeddings", None)
    return context if isinstance(context, int) and context > 0 else None


def by_weights(readers: Sequence[Reader], fuse: bool = True) -> Iterator[list[Reader]]:
    """Readers that share a forward pass: those with the same weights, or each alone without ``fuse``."""
    groups: dict[int, list[Reader]] = {}
    for index, reader in enumerate(readers):
        groups.setdefault(id(reader.model) if fuse else index, []).append(reader)
    yield from groups.values()


def _may_fuse_expert(
    model: Any, model_kwargs: Mapping[str, Any], config: GenerationConfig | None, restorable: bool
) -> bool:
    """Whether the expert's row is no more than its tokens: nothing handed in or asked for is bound to its own batch."""
    cache = model_kwargs.get("past_key_values")
    if model.config.is_encoder_decoder or type(cache) is not DynamicCache or getattr(cache, "_is_user_defined", False):
        return False
    if cache.get_seq_length() > 0 or getattr(cache, "offloading", False):
        return False
    if restorable and any(is_sliding(layer) for layer in cache.layers):
        return False
    if config is not None and (config.output_attentions or config.output_hidden_states):
        return False
    plain = {"attention_mask", "past_key_values", "position_ids", "use_cache", "logits_to_keep", "cache_position"}
    given = {name for name, value in model_kwargs.items() if value is not None and value is not False}
    return given - plain - {"output_attentions", "output_hidden_states"} == set() and _usual_positions(model_kwargs)


def _usual_positions(model_kwargs: Mapping[str, Any]) -> bool:
    positions, mask = model_kwargs.get("position_ids"), model_kwargs.get("attention_mask")
    if positions is None:
        return True
    if positions.dim() != 2 or mask is None or mask.dim() != 2 or positions.shape[1] != mask.shape[1]:
        return mask is None
    usual = (mask.long().cumsum(1) - 1).clamp(min=0)
    return bool(((positions == usual) | (mask == 0)).all())


def _recurrent(cache: Any) -> bool:
    """Models with recurrent states read padding as text, so their prompts of several lengths cannot share a batch."""
    return hasattr(cache, "layers") and is_recurrent(cache)


def _new_tokens(config: GenerationConfig | None, input_ids: Tensor) -> int:
    """How many tokens the call may add, the last of which nobody reads; 1 where it does not say."""
    if config is None or config.max_length is None:
        return 1
    return max(1, int(config.max_length) - input_ids.shape[1])


def _prompts(input_ids: Tensor, model_kwargs: Mapping[str, Any], model: Any) -> list[list[int]]:
    """The tokens of each row, padding left out."""
    if model.config.is_encoder_decoder:
        raise ModelError(
            f"{type(model).__name__} is an encoder-decoder, whose prompt only its own encoder has read: accepted for a "
            "contrast with another reader are decoder-only models (DoLa, which has none, takes both)"
        )
    if model_kwargs.get("inputs_embeds") is not None:
        raise InputError("inputs_embeds: a contrast with another reader needs the prompt's input_ids")
    mask = model_kwargs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        return input_ids.tolist()
    if mask.shape != input_ids.shape:
        raise InputError(f"attention_mask {tuple(mask.shape)} does not fit input_ids {tuple(input_ids.shape)}")
    return [ids[keep.bool()].tolist() for ids, keep in zip(input_ids, mask, strict=True)]


def behind(reader: Reader, prompt: list[int], row: int, model: Any) -> list[int]:
    """What a reader reads of one row's prompt: its prefix stands before it, behind a bos token.

    Raises:
        InputError: a token that is not in the reader's vocabulary.
    """
    if reader.from_last_token:
        prompt = prompt[-1:]
    vocab = model.config.get_text_config(decoder=True).vocab_size
    prefix = list(reader.prefix[row]) if reader.prefix is not None else []
    foreign = next((token for token in (*prefix, *prompt) if not 0 <= token < vocab), None)
    if foreign is not None:
        raise InputError(
            f"the {reader.role}'s prompt has token {foreign}, which is none of its vocabulary of {vocab} tokens"
        )
    bos = model.config.get_text_config(decoder=True).bos_token_id
    if prefix and prompt and isinstance(bos, int) and prompt[0] == bos:
        return [bos, *(prefix[1:] if prefix[0] == bos else prefix), *prompt[1:]]
    return [*prefix, *prompt]
