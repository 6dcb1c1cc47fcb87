"""The model class ``decoding`` of lm-evaluation-harness: its Hugging Face model, decoded and scored by a strategy.

Importing this module registers it.
"""

from __future__ import annotations

import difflib
import inspect
from collections.abc import Mapping
from typing import Any

import lm_eval
import torch
import transformers
from lm_eval.api.registry import register_model
from lm_eval.models.huggingface import HFLM
from torch import Tensor

from decoding.errors import DecodingError, ModelError, OptionError, one_line
from decoding.evals import miniature
from decoding.evals.engine.configurations import configured, described, digest
from decoding.generation.strategy import Strategy
from decoding.models.device_options import placement
from decoding.models.devices import input_device
from decoding.models.gguf import is_gguf
from decoding.models.loading import DTYPES, load
from decoding.models.releases import RELEASES, fetched_folder
from decoding.models.wrappers import unwrapped
from decoding.scoring.teacher_forcing import longest_text, teacher_forced
from decoding.strategies.contrast.base import ContrastStrategy
from decoding.strategies.effective_config import decoded_with, effective_config, folder_config, options_of_folder
from decoding.strategies.given import GivenStrategy, given_strategy
from decoding.strategies.registry import StrategySpec, parameters_of, scorable_strategies

__all__ = ["DecodingLM"]

CACHE_KEY = "decoding"  # of lm-eval's cache of answers: beside it stand digests of requests


@register_model("decoding")
class DecodingLM(HFLM):
    """lm-eval's ``hf`` model with a strategy. Without one it is ``hf``.

    With a strategy, penalties, samplers and the like of the model's ``generation_config.json`` are off; those of the
    task and of lm-eval's ``--gen_kwargs`` act.

    Tasks that generate use any strategy. Tasks that ask for log-likelihoods use a contrast strategy's (or the model's
    own with "greedy"); the others cannot score a given token and are refused. lm-eval applies log-softmax to its
    input, so scores are always normalised (``decoding.score`` also gives them raw).

    Args:
        pretrained: as in ``hf``; an embedded model, "expert" (the default) or "amateur"; a fetched one; or a ``.gguf``
            file.
        strategy: in any form that :func:`decoding.generate` takes, such as ``dola:layers=high``; None for none.
        floor: log-score of a token that is not plausible. With ``alpha=0`` every token is plausible.
        kwargs: the strategy's parameters, which override those in ``strategy``; the rest are ``hf``'s. Separate numbers
            of a list by ``;`` or ``,``: lm-eval separates arguments by the latter. ``device_map`` is
            ``parallelize=True`` with this map; ``hf`` alone ignores it.

    Raises:
        OptionError: an unknown strategy or parameter, or a value that is out of range or does not fit the model.
        ModelError: no model that can be loaded, or an amateur that does not fit it.

    Example:
        >>> lm = DecodingLM("expert", strategy="lol", amateur="amateur", lower_layers="0.5;0.75", dtype="float32")
        >>> lm_eval.simple_evaluate(lm, tasks=["hellaswag"])
    """

    spec: StrategySpec | None = None
    _longest_text: int | None = None

    def __init__(
        self, pretrained: Any = "expert", strategy: GivenStrategy | None = None, floor: float = -1000.0, **kwargs: Any
    ) -> None:
        spec = None
        if isinstance(strategy, str):
            settings, kwargs = _divided(strategy, kwargs)
            spec = given_strategy(strategy, settings)
        elif strategy is not None:
            spec = given_strategy(strategy)
        if isinstance(pretrained, str) and pretrained in miniature.NAMES:
            pretrained = str(miniature.folder(pretrained))
        elif pretrained in RELEASES:
            pretrained = str(fetched_folder(pretrained))
        elif isinstance(pretrained, str) and is_gguf(pretrained):
            dtype = kwargs.get("dtype")
            pretrained, tokenizer = load(pretrained, kwargs.get("device"), dtype if dtype in DTYPES else None)
            kwargs.setdefault("tokenizer", tokenizer)
        placement(None, kwargs.get("device_map"), kwargs.get("tp_plan"))
        if kwargs.get("device_map") is not None:
            kwargs["parallelize"] = True
        try:
            super().__init__(pretrained, **kwargs)
        except DecodingError:
            raise
        except Exception as error:  # of any kind, from transformers: a name, a broken folder, a wrong argument
            raise ModelError(f"pretrained={pretrained}: lm-eval cannot load it ({one_line(error)})") from error
        self._device = input_device(self.model)  # lm-eval assumes that a model on several devices begins on cuda
        self.floor = float(floor)
        if spec is not None:
            self.spec = spec.with_tokenizer(self.tokenizer)
            self.spec.check(unwrapped(self.model))
            if isinstance(self.spec.strategy, ContrastStrategy):
                self._longest_text = longest_text(self.model, self.spec.strategy)

    @property
    def max_length(self) -> int:
        """The number of tokens that a text may have, so that it fits every reader's context after the prefix."""
        longest: int = super().max_length
        return longest if self._longest_text is None else min(longest, self._longest_text)

    def get_model_info(self) -> dict[str, Any]:
        """The entries of lm-eval's results file on the model, with the strategy and all its parameters.

        With a strategy also what it decodes with, but for the task's own parameters, and what the model's generation
        config has and is off.
        """
        info = super().get_model_info() | {"strategy": None if self.spec is None else self.spec.label}
        if self.spec is None:
            return info
        return info | {
            "generation_config": effective_config(self.spec, self.model, {}),
            "folder_generation_config": options_of_folder(self.model),
        }

    def set_cache_hook(self, cache_hook: Any) -> None:
        """Take lm-eval's cache of answers (``--use_cache``), whose keys have the request and no model or strategy.

        Raises:
            OptionError: it has answers of another model, tokenizer, strategy or version.
        """
        super().set_cache_hook(cache_hook)
        answers = cache_hook.dbdict
        if answers is None:
            return
        here = self._configuration()
        if len(answers) == 0:
            answers[CACHE_KEY] = here
            answers.commit()
        elif answers.get(CACHE_KEY) != here:
            raise OptionError(
                "use_cache: this cache has answers of another model or strategy, or of another version: give another "
                "path to --use_cache, or remove the file"
            )

    def _configuration(self) -> str:
        """A digest of all that decides an answer beside its request."""
        request = {"max_length": self.max_length, "add_bos_token": self.add_bos_token, "truncation": self.truncation}
        if self.spec is None:  # lm-eval's own hf, which decodes with all that the folder has
            model, versions = described(self.model, "", self.tokenizer), (lm_eval.__version__, transformers.__version__)
            return digest([model, folder_config(self.model), versions, request])
        task = {**request, "floor": self.floor, "lm_eval": lm_eval.__version__}
        (configuration,) = configured([self.spec], unwrapped(self.model), self.tokenizer, "", task=task)
        return configuration.hash

    def _loglikelihood_tokens(self, requests: Any, *args: Any, **kwargs: Any) -> list[tuple[float, bool]]:
        spec = self.spec
        if spec is not None and not spec.strategy.scorable:
            raise OptionError(
                f"strategy={spec.name}: it gives no score to a given token, and this task asks for log-likelihoods; "
                f"must be {', '.join(scorable_strategies())} or no strategy (tasks that generate take every strategy)"
            )
        return super()._loglikelihood_tokens(requests, *args, **kwargs)

    def _model_call(self, inps: Tensor, attn_mask: Tensor | None = None, labels: Tensor | None = None) -> Tensor:
        """(batch, length, vocab) log-scores of the token after each position of right-padded ``inps``."""
        if self.spec is None or not isinstance(self.spec.strategy, ContrastStrategy):
            return super()._model_call(inps, attn_mask, labels)
        with self._autocast():
            return teacher_forced(self.model, inps, self.spec.strategy, self.floor)

    def _model_generate(self, context: Tensor, max_length: int, stop: list[str], **generation_kwargs: Any) -> Tensor:
        """(batch, at most ``max_length``) left-padded ``context``, continued until every row contains a stop string."""
        if self.spec is None:
            return super()._model_generate(context, max_length, stop, **generation_kwargs)
        if isinstance(self.spec.strategy, Strategy):
            generation_kwargs["custom_generate"] = self.spec.strategy
        else:
            # greedy, sampling and beam override the task's generation parameters
            for name in ("do_sample", "temperature", "top_k", "top_p", "num_beams"):
                generation_kwargs.pop(name, None)
            generation_kwargs |= {"do_sample": self.spec.is_stochastic, **self.spec.parameters}
        with decoded_with(self.model, {}):
            return super()._model_generate(context, max_length, stop, **generation_kwargs)

    def _autocast(self) -> Any:
        dtype = self.mixed_precision_dtype
        return torch.autocast(device_type=self.device.type, dtype=dtype, enabled=dtype is not None)


def _divided(strategy: str, arguments: Mapping[str, Any]) -> tuple[dict[str, str], dict[str, Any]]:
    """A strategy's parameters, as text, and the arguments that are lm-eval's or transformers'.

    An argument that is neither ``hf``'s nor a parameter, but similar to one, counts as a misspelt parameter.
    """
    parameters = parameters_of(strategy)
    known = inspect.signature(HFLM.__init__).parameters
    settings, rest = {}, {}
    for name, value in arguments.items():
        misspelt = name not in known and difflib.get_close_matches(name, parameters, n=1, cutoff=0.75)
        if name in parameters or misspelt:
            settings[name] = _as_text(value)
        else:
            rest[name] = value
    return settings, rest


def _as_text(value: Any) -> str:
    """A value that lm-eval has parsed, as the text of a command line."""
    if isinstance(value, (list, tuple)):
        return ",".join(map(str, value))
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
