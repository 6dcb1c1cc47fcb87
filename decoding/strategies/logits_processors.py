"""Every strategy as a logits processor for plain ``model.generate``: sampling, beam search, other processors."""

from __future__ import annotations

import dataclasses
from typing import Any

from decoding.generation.logits_processor import StrategyLogitsProcessor
from decoding.strategies.contrastive_decoding import ContrastiveDecoding
from decoding.strategies.contrastive_search.strategy import ContrastiveSearch
from decoding.strategies.dola import DoLa
from decoding.strategies.lol import LOL

__all__ = [
    "ContrastiveDecodingLogitsProcessor",
    "ContrastiveSearchLogitsProcessor",
    "DoLaLogitsProcessor",
    "LOLLogitsProcessor",
]


class ContrastiveSearchLogitsProcessor(StrategyLogitsProcessor):
    """Contrastive search as a logits processor; see :class:`decoding.ContrastiveSearch` and
    :class:`StrategyLogitsProcessor`.

    Example:
        >>> processor = ContrastiveSearchLogitsProcessor(model, penalty_alpha=0.6, top_k=4)
        >>> model.generate(**inputs, logits_processor=[processor], num_beams=3)
    """

    def __init__(self, model: Any, penalty_alpha: float = 0.6, top_k: int = 4, **inputs: Any) -> None:
        super().__init__(ContrastiveSearch(penalty_alpha, top_k), model, **inputs)


class ContrastiveDecodingLogitsProcessor(StrategyLogitsProcessor):
    """Contrastive decoding as a logits processor; see :class:`decoding.ContrastiveDecoding` and
    :class:`StrategyLogitsProcessor`.

    The expert's logits are those that ``generate`` passes on, so only the amateur is read beside it. Under beam
    search, whose beams compare sums, ``form="log_probs"`` is the paper's objective; ``form="logits"`` needs
    ``renormalize_logits=True``.

    Args:
        model: the model that ``generate`` is called on.
        amateur: see :class:`decoding.ContrastiveDecoding`.
        settings: its other parameters; everything else goes to :class:`StrategyLogitsProcessor`.

    Example:
        >>> processor = ContrastiveDecodingLogitsProcessor(expert, amateur, form="log_probs", beta=1.0)
        >>> expert.generate(**inputs, logits_processor=[processor], num_beams=5)
    """

    def __init__(self, model: Any, amateur: Any, **settings: Any) -> None:
        parameters, inputs = _parameters_and_inputs(ContrastiveDecoding, settings)
        super().__init__(ContrastiveDecoding(amateur, **parameters), model, **inputs)


class DoLaLogitsProcessor(StrategyLogitsProcessor):
    """DoLa as a logits processor; see :class:`decoding.DoLa` and :class:`StrategyLogitsProcessor`.

    Example:
        >>> model.generate(**inputs, logits_processor=[DoLaLogitsProcessor(model, layers="high")])
    """

    def __init__(self, model: Any, **settings: Any) -> None:
        parameters, inputs = _parameters_and_inputs(DoLa, settings)
        super().__init__(DoLa(**parameters), model, **inputs)


class LOLLogitsProcessor(StrategyLogitsProcessor):
    """LOL as a logits processor; see :class:`decoding.LOL` and :class:`StrategyLogitsProcessor`.

    Example:
        >>> processor = LOLLogitsProcessor(model, "hallucinating", lower_layers=[0.5, 0.75])
        >>> model.generate(**inputs, logits_processor=[processor])
    """

    def __init__(self, model: Any, amateur: Any, lower_layers: Any, **settings: Any) -> None:
        parameters, inputs = _parameters_and_inputs(LOL, settings)
        super().__init__(LOL(amateur, lower_layers, **parameters), model, **inputs)


def _parameters_and_inputs(strategy: type[Any], settings: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """The strategy's parameters, and the inputs of the model."""
    names = {field.name for field in dataclasses.fields(strategy)}
    parameters = {name: value for name, value in settings.items() if name in names}
    return parameters, {name: value for name, value in settings.items() if name not in names}
