"""The isotropy of a model's hidden states: one streaming pass over texts, for all layers together."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from decoding.errors import InputError, ModelError
from decoding.evals.isotropy import figures
from decoding.evals.isotropy.measures import isoscore, shrunk
from decoding.evals.isotropy.results import Counts, HeatMap, Isotropy
from decoding.evals.isotropy.sample import TextSample
from decoding.evals.isotropy.settings import Settings
from decoding.evals.isotropy.states import layer_numbers, read_states
from decoding.evals.isotropy.sums import CosineSums, Moments, MomentSums, pooled
from decoding.evals.isotropy.texts import EncodedText, batches, encoded_texts
from decoding.models.devices import input_device
from decoding.models.inputs import context_of
from decoding.models.layers import depth_of
from decoding.models.wrappers import text_tokenizer, unwrapped

__all__ = ["analyse", "analyse_each"]

DEFAULT = Settings()
HEAT_MAP_TOKENS = 32  # of a text, as many as are legible
HEAT_MAP_LEAST = 24  # a shorter text is shown only if all are


def analyse(
    model: Any,
    tokenizer: Any,
    texts: Iterable[str],
    settings: Settings = DEFAULT,
    *,
    name: str | None = None,
    data: str = "texts",
    report: Callable[[int], None] | None = None,
) -> Isotropy:
    """Measure the isotropy of a model's hidden states on texts, layer by layer.

    The texts are read once, however many there are, and the memory does not grow with them: for each layer a
    (dim, dim) matrix in float64, a few vectors, and a sample of ``settings.sample_tokens`` states. Cosines (raw),
    spectrum, IsoScore and rogue dimensions are exact over all tokens; centred and standardised cosines, the partition
    score's Z, TwoNN and the penalty are taken over the sample, with means and directions over all tokens.

    Args:
        model: a decoder-only transformers model, in eval mode.
        tokenizer: its tokenizer.
        texts: any iterable of strings, read once.
        settings: :data:`PAPER` is the paper's measure, of the last layer only.
        name: of the model, for the report; by default ``name_or_path``.
        data: of the texts; a language code ("de") makes the verdict start from that language's k.
        report: called after each forward pass with the number of texts read.

    Returns:
        The analysis; ``plots`` and ``html_report`` take it, ``as_dict()`` is JSON.

    Raises:
        InputError: no text with a token, or an item that is no text.
        OptionError: a layer that the model does not have.
        ModelError: an encoder-decoder model, or states that are not finite.

    Example:
        >>> result = analyse(model, tokenizer, ["A first text.", "And a second one."])
        >>> result.last.isotropy.value
    """
    return analyse_each(model, tokenizer, {data: texts}, settings, name=name, report=report)[0]


@torch.no_grad()
def analyse_each(
    model: Any,
    tokenizer: Any,
    data: Mapping[str, Iterable[str]],
    settings: Settings = DEFAULT,
    *,
    name: str | None = None,
    report: Callable[[int], None] | None = None,
) -> list[Isotropy]:
    """Analyse several data sets, for instance languages; IsoScore* is shrunk towards all of them together.

    For that the covariances of each are kept on the CPU, layers × dim² × 4 bytes a data set. ``report`` counts the
    texts of all data sets.
    """
    model, tokenizer = unwrapped(model), text_tokenizer(tokenizer)
    layers = layer_numbers(model, settings.layers)
    results, moments = [], []
    read = 0
    for data_name, texts in data.items():
        reading = StreamingPass(model, tokenizer, layers, settings)
        for count in reading.over(texts):
            read += count
            if report is not None:
                report(read)
        reading.check(data_name)
        of_layers = [sums.moments() for sums in reading.moments]
        results.append(_result(reading, of_layers, name or str(model.name_or_path), data_name))
        moments.append(
            [part.to(device="cpu", dtype=torch.float32) for part in of_layers] if len(data) > 1 else of_layers
        )
    return [_with_isoscore_star(result, parts, moments) for result, parts in zip(results, moments, strict=True)]


class StreamingPass:
    """Sums and samples that are kept while texts are read.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        layers: ascending numbers of layers.
        settings: of the analysis.
    """

    def __init__(self, model: Any, tokenizer: Any, layers: tuple[int, ...], settings: Settings) -> None:
        self.model, self.tokenizer, self.layers, self.settings = model, tokenizer, layers, settings
        # Apple's GPUs have no float64.
        device = input_device(model)
        self.device = torch.device("cpu") if device.type == "mps" else device
        self.cosines: list[CosineSums] = []
        self.moments: list[MomentSums] = []
        self.sample = TextSample(settings.sample_tokens, settings.seed)
        self.example: tuple[EncodedText, Tensor] | None = None  # with its last states (n, dim)
        self.texts = self.tokens = self.skipped = self.cut = self.spelled = self.characters = 0

    def over(self, texts: Iterable[str]) -> Iterator[int]:
        """Read the texts; yields the number of texts of each forward pass."""
        max_length = min(self.settings.max_length, context_of(self.model) or self.settings.max_length)
        encoded = encoded_texts(texts, self.tokenizer, self.settings, max_length)
        for batch in batches(filter(self._count, encoded), self.settings.batch_tokens):
            self.take(batch, read_states(self.model, [text.ids for text in batch], self.layers))
            yield len(batch)

    def _count(self, text: EncodedText) -> bool:
        tokens = sum(text.kept)
        self.tokens += tokens
        self.texts += tokens > 0
        self.skipped += tokens == 0
        self.cut += text.whole > len(text.ids)
        self.spelled += text.whole
        self.characters += len(text.text)
        return tokens > 0

    def take(self, batch: list[EncodedText], states: list[Tensor]) -> None:
        """Add the states (batch, n, dim) of a batch, one tensor a layer."""
        width = states[0].shape[1]
        states = [layer_states.to(self.device) for layer_states in states]  # a model may be spread over several devices
        kept = torch.tensor([text.kept + [False] * (width - len(text.kept)) for text in batch], device=self.device)
        if not self.cosines:
            self.cosines = [CosineSums(layer_states.shape[-1], self.device) for layer_states in states]
            self.moments = [MomentSums(layer_states.shape[-1], self.device) for layer_states in states]
        everything = bool(kept.all())
        for cosines, moments, layer_states in zip(self.cosines, self.moments, states, strict=True):
            layer_states = layer_states.to(torch.promote_types(layer_states.dtype, torch.float32))
            cosines.add(layer_states, kept)
            moments.add(layer_states.flatten(0, 1) if everything else layer_states[kept])
        for row, text in enumerate(batch):
            if self.sample.wants(text.index):
                self.sample.add(text.index, [layer_states[row][kept[row]] for layer_states in states])
            if self.example is None or _as_example(text) < _as_example(self.example[0]):
                self.example = text, states[-1][row][kept[row]][:HEAT_MAP_TOKENS].cpu()

    def check(self, data: str) -> None:
        """Raise InputError where nothing was read, ModelError where a layer's states were not finite."""
        if not self.texts:
            raise InputError(f"{data}: no text has a token that counts")
        for layer, cosines, moments in zip(self.layers, self.cosines, self.moments, strict=True):
            if not bool(cosines.units.isfinite().all() & moments.second.isfinite().all()):
                raise ModelError(
                    f"{type(self.model).__name__}: states of layer {layer} are not finite in {self.model.dtype}; try "
                    "bfloat16 or float32"
                )

    def heat_map(self) -> HeatMap | None:
        """Cosines between the first tokens of the example in the last layer read."""
        return None if self.example is None else figures.heat_map(*self.example, self.tokenizer, self.layers[-1])


def _as_example(text: EncodedText) -> tuple[bool, int]:
    return sum(text.kept) < HEAT_MAP_LEAST, text.index


def _result(done: StreamingPass, moments: list[Moments], name: str, data: str) -> Isotropy:
    depth = depth_of(done.model)
    layers = [
        figures.layer_figures(number, depth, cosines, sums, done.sample.layer(position), done.settings)
        for position, (number, cosines, sums) in enumerate(zip(done.layers, done.cosines, moments, strict=True))
    ]
    last = done.sample.layer(-1)
    counts = Counts(
        done.texts, done.tokens, done.skipped, done.cut, len(last), sum(map(len, last)), done.spelled / done.characters
    )  # fmt: skip
    return Isotropy(
        model=name,
        data=data,
        dim=len(moments[-1].mean),
        depth=depth,
        parameters=sum(parameter.numel() for parameter in done.model.parameters()),
        dtype=str(done.model.dtype).removeprefix("torch."),
        settings=done.settings,
        counts=counts,
        layers=tuple(layers),
        penalty=figures.penalty(last) if done.layers[-1] == depth else None,
        heat_map=done.heat_map(),
        reference="",
    )


def _with_isoscore_star(result: Isotropy, parts: list[Moments], every: list[list[Moments]]) -> Isotropy:
    layers = []
    for position, (layer, moments) in enumerate(zip(result.layers, parts, strict=True)):
        together = pooled([data_set[position] for data_set in every]).covariance if len(every) > 1 else None
        star = isoscore(shrunk(moments.covariance, together, result.settings.zeta))
        layers.append(replace(layer, isoscore_star=star))
    reference = "all data sets together" if len(every) > 1 else "the identity"
    return replace(result, layers=tuple(layers), reference=reference)
