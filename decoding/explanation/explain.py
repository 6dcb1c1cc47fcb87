"""``decoding.explain``: why a strategy chose each token of a text."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from decoding.api import generate
from decoding.drafts.record import DraftRecord, require_record
from decoding.errors import DecodingWarning, InputError, OptionError, shown
from decoding.explanation.records import Explanation, Step
from decoding.explanation.replay import Looked, Replay, not_after_prompt
from decoding.explanation.steps import step_records
from decoding.explanation.token_texts import TokenTexts
from decoding.generation.roles import EXPERT
from decoding.generation.strategy import Strategy
from decoding.models.inputs import check_tokens, context_of, with_named_inputs
from decoding.models.segments import check_one_segment
from decoding.models.wrappers import check_model, text_tokenizer, unwrapped
from decoding.parameters import require_count
from decoding.strategies.effective_config import with_strategy
from decoding.strategies.given import GivenStrategy, given_strategy
from decoding.strategies.model_logits import ModelLogits
from decoding.strategies.registry import NOT_EXPLAINED, STRATEGIES, StrategySpec
from decoding.text import Continuation, encoded, new_token_budget
from decoding.transformers_private import CALLERS_CACHE_ARGUMENTS

__all__ = ["explain", "explain_continuation"]

# Arguments of generate that change no score of a text that is known.
IGNORED = (
    "compile", "draft_tokens", "drafts", "return_dict_in_generate", "seeds", "stop_strings", "stopping_criteria",
    "streamer", *(f"output_{name}" for name in ("attentions", "hidden_states", "logits", "scores")),
)  # fmt: skip


def explain(
    model: Any,
    sequences: Tensor,
    strategy: GivenStrategy | None,
    *,
    tokenizer: Any = None,
    alternatives: int = 5,
    draft_record: DraftRecord | None = None,
    progress: Callable[[int], None] | None = None,
    **inputs: Any,
) -> list[Explanation]:
    """Every choice that made a text: what each reader said, what the scores are made of, and what was rejected.

    The text is read once more with its tokens given, and the call that made it costs nothing more. Most strategies read
    many tokens in one pass; contrastive search reads the candidates of one step after the other, as it did. Tokens
    that were drawn are explained as well as those with the highest score, and so are texts from elsewhere: a token that
    the strategy would not have chosen has no score.

    Args:
        model: the generating model.
        sequences: (batch, length) token ids as ``generate`` returned them, the prompt included.
        strategy: that made them; a baseline or its name ("greedy", "top-k:top_k=20"), which decodes as commands do; or
            a strategy as the command line writes it ("dola:layers=low"). None is the model itself with the arguments'
            samplers.
        tokenizer: for the texts of tokens, and for strategies that have texts.
        alternatives: how many of the tokens with the highest scores, and how many of the most probable ones, are shown
            at each step.
        draft_record: of the call that made them; steps then tell of their drafts.
        progress: is called with the position of each token before it is explained. What it raises ends the
            explanation, and is raised here.
        inputs: the inputs of that ``generate`` call beside the strategy: ``input_ids``, ``attention_mask``, images,
            and all that changes scores, such as ``repetition_penalty``, ``do_sample`` with ``top_p``, or
            ``max_new_tokens`` where the model forces its end token there.

    Returns:
        For each row its explanation: of every new token, its end token included.

    Raises:
        OptionError: a strategy that does not choose token after token (beam search), or options that it cannot honour.
        InputError: sequences that do not begin with the prompt or have more tokens than the call makes; a prompt that
            is not given as tokens from the first one on.
        ModelError: the model does not fit the strategy.

    Warns:
        DecodingWarning: a token of the sequences may not be chosen where it stands, so that other arguments made them.

    Example:
        >>> sequences = decoding.generate(model, **inputs, strategy=strategy, max_new_tokens=64)
        >>> for step in decoding.explain(model, sequences, strategy, tokenizer=tokenizer, **inputs)[0].steps:
        ...     if step.differs_from_greedy:
        ...         print(step.chosen.text, "instead of", step.greedy.text, step.weights)
    """
    check_model(model)
    model = unwrapped(model)
    tokenizer = text_tokenizer(tokenizer, required=False)
    require_count("alternatives", alternatives, 1)
    require_record(draft_record)
    if progress is not None and not callable(progress):
        raise OptionError(f"progress={shown(progress)}: must be a function of a position, or None")
    spec, decodes = _strategy(strategy, tokenizer)
    _, inputs = with_named_inputs(None, inputs)
    if hasattr(sequences, "sequences"):
        raise InputError(f"sequences is a {type(sequences).__name__}: give its field sequences")
    check_tokens(model, sequences, "sequences")
    if sequences.shape[1] == 0:
        raise InputError("sequences are empty: give what generate returned, the prompt included")
    for name in (*CALLERS_CACHE_ARGUMENTS, "inputs_embeds"):
        if inputs.get(name) is not None and not (name == "inputs_embeds" and model.config.is_encoder_decoder):
            raise InputError(f"{name}: tokens of the whole text are named, so give it as input_ids from the first on")
    prompt = inputs.get("input_ids")
    if isinstance(prompt, Tensor) and not model.config.is_encoder_decoder and sequences.shape[-1] < prompt.shape[-1]:
        raise not_after_prompt(sequences, prompt)
    check_one_segment(model, inputs, "a text is explained segment by segment; give the frames of one")
    inputs = {name: value for name, value in inputs.items() if name not in IGNORED}
    if not {"max_new_tokens", "max_length", "generation_config"} & inputs.keys():
        # One more than were made, where there is room: at the last one some models force their end token.
        length = sequences.shape[1] + 1
        inputs["max_length"] = min(length, context_of(model) or length)
    if spec is not None:
        spec.check(model)
        config = with_strategy(spec, copy.deepcopy(inputs.pop("generation_config", None) or model.generation_config))
        inputs = {**config.update(**inputs), "generation_config": config}
    records = _Records(sequences, tokenizer, alternatives, draft_record, progress)
    generate(model, strategy=Replay(decodes, sequences, records), tokenizer=tokenizer, **inputs)
    if records.mismatch is not None:
        warnings.warn(records.mismatch, DecodingWarning, stacklevel=2)
    return records.explanations("model" if strategy is None else _label(spec, decodes))


def explain_continuation(
    model: Any,
    tokenizer: Any,
    spec: StrategySpec,
    made: Continuation,
    *,
    max_new_tokens: int | None = None,
    chat: bool = False,
    alternatives: int = 5,
) -> Explanation:
    """The explanation of a text that :func:`decoding.text.continuations` has made; arguments as there.

    Raises:
        OptionError: a strategy that does not choose token after token.
    """
    inputs: Any = encoded(model, tokenizer, made.prompt, chat)
    return explain(
        model, torch.tensor([made.token_ids]), spec, tokenizer=tokenizer, alternatives=alternatives, **inputs,
        max_new_tokens=new_token_budget(model, inputs["input_ids"].shape[1], max_new_tokens),
    )[0]  # fmt: skip


def _strategy(given: Any, tokenizer: Any) -> tuple[StrategySpec | None, Strategy]:
    """The spec of what decodes as commands do, None for what decodes as ``decoding.generate`` does; and the strategy
    whose session is read.
    """
    if given is None:
        return None, ModelLogits()
    if isinstance(given, Strategy):
        return None, given
    spec = given_strategy(given)
    if spec.name in NOT_EXPLAINED:
        raise OptionError(
            f"strategy={spec.label}: beam search chooses among whole texts, and there is no choice of each token to "
            "explain; explain its text as strategy='greedy' to see what the model said"
        )
    spec = spec.with_tokenizer(tokenizer)
    return spec, spec.strategy if isinstance(spec.strategy, Strategy) else ModelLogits()


def _label(spec: StrategySpec | None, strategy: Strategy) -> str:
    if spec is not None:
        return spec.label
    name = STRATEGIES.name_of(type(strategy))
    return strategy.name if name is None else StrategySpec(name, strategy).label


class _Records:
    """The steps of each row, as its text is read.

    Attributes:
        mismatch: tells of the first token that may not be chosen where it stands; None where there is none.
    """

    def __init__(
        self,
        sequences: Tensor,
        tokenizer: Any,
        alternatives: int,
        draft_record: DraftRecord | None,
        progress: Callable[[int], None] | None,
    ) -> None:
        self._sequences = sequences.tolist()
        self._drafts = [{} for _ in self._sequences] if draft_record is None else draft_record.rows
        if len(self._drafts) != len(self._sequences):
            raise InputError(
                f"draft_record: is of a call of {len(self._drafts)} rows, and the sequences have {len(self._sequences)}"
            )
        self._tokenizer = tokenizer
        self._alternatives = alternatives
        self._progress = progress
        self._readers: tuple[str, ...] = (EXPERT,)
        self._steps: list[list[Step]] = [[] for _ in self._sequences]
        self._is_padding: list[list[bool]] = []
        self._texts: list[TokenTexts | None] = []
        self._ends: list[int] = []
        self.mismatch: str | None = None

    def begin(self, is_padding: Tensor, ends: Sequence[int]) -> None:
        """Take what the call knows of the rows; see :class:`decoding.explanation.replay.Watcher`."""
        prompt = is_padding.tolist()
        self._ends = list(ends)
        self._is_padding = [[*row, *[False] * (end - len(row))][:end] for row, end in zip(prompt, ends, strict=True)]
        self._texts = [
            None if self._tokenizer is None else TokenTexts(self._tokenizer, self._unpadded(row))
            for row in range(len(prompt))
        ]

    def look(self, looked: Looked) -> None:
        """Keep the step of each row that goes on."""
        if self._progress is not None:
            self._progress(looked.column)
        self._readers = tuple(looked.parts.readers)
        tokens = torch.tensor([row[looked.column] for row in self._sequences], device=looked.greedy.device)
        padding = [sum(row) for row in self._is_padding]

        def text_at(row: int, token: int) -> str | None:
            texts = self._texts[row]
            return None if texts is None else texts.at(looked.column - padding[row], token)

        steps = step_records(
            looked.parts, looked.greedy, tokens, looked.rows, looked.column, text_at,
            alternatives=self._alternatives, temperature=looked.temperature,
        )  # fmt: skip
        for row, step in zip(looked.rows, steps, strict=True):
            if step.position in self._drafts[row]:
                token, accepted = self._drafts[row][step.position]
                step = replace(step, draft="accepted" if accepted else "rejected", draft_token=token)
            self._steps[row].append(step)
            if step.chosen.score is None and self.mismatch is None:
                self.mismatch = (
                    f"sequences: token {step.chosen.token} (row {row}, position {step.position}) may not be chosen "
                    f"there, where the strategy has {step.choices} tokens to choose from: give what generate was given "
                    "when it made the text"
                )

    def explanations(self, strategy: str) -> list[Explanation]:
        """One for each row.

        Args:
            strategy: its name and parameters.
        """
        return [
            Explanation(
                strategy, self._readers, tuple(self._sequences[row][: self._ends[row]]), self._row_texts(row),
                tuple(self._is_padding[row]), tuple(steps),
            )
            for row, steps in enumerate(self._steps)
        ]  # fmt: skip

    def _unpadded(self, row: int) -> list[int]:
        tokens = self._sequences[row][: self._ends[row]]
        return [token for token, left_out in zip(tokens, self._is_padding[row], strict=True) if not left_out]

    def _row_texts(self, row: int) -> tuple[str, ...] | None:
        texts = self._texts[row]
        if texts is None:
            return None
        added = iter(texts.texts)
        return tuple("" if left_out else next(added) for left_out in self._is_padding[row])
