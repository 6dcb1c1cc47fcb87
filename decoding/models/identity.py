"""Identities of models and tokenizers: short digests of all that decides their numbers.

A digest changes with the numbers that a model gives, and with nothing else: not with a folder's name, a device, or
state that calls change. They tell whether stored results may stand for new ones.
"""

from __future__ import annotations

import hashlib
import json
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from decoding.models.adapters import Adapter, LoadedAdapter, active_adapters, scalings_of
from decoding.models.devices import whole_weights

__all__ = ["config_digest", "digest", "fingerprint", "identity", "tokenizer_digest"]

HASHED_AT_ONCE = 2**24  # numbers of a tensor, which may have to be copied to the host

# Entries of a config.json that decide no number: names, versions, labels of classifiers, what a call returns and keeps.
# The dtype is told apart. Private entries decide none either: where a model came from, and the code of its attention,
# which rounds differently, as another device does.
NOT_NUMBERS = {
    "name_or_path", "transformers_version", "architectures", "dtype", "torch_dtype", "id2label", "label2id",
    "problem_type", "return_dict", "output_attentions", "output_hidden_states", "use_cache",
}  # fmt: skip

# Settings of a tokenizer that are names or places of files, or that calls change.
NOT_TOKENS = {
    "name_or_path", "tokenizer_file", "special_tokens_map_file", "tokenizer_class", "auto_map", "processor_class",
    "padding_side", "truncation_side", "padding", "truncation", "max_length", "stride", "model_max_length",
    "pad_to_multiple_of", "model_input_names", "added_tokens_decoder", "chat_template", "is_local", "local_files_only",
    "backend",
}  # fmt: skip

# Scripts, symbols, spaces and special forms in a few tokens, read by tokenizers that no file describes completely.
PROBE = "An 8? é, 字 🙂\n  The   3rd\tkey's"


def identity(
    model: Any,
    tokenizer: Any = None,
    adapter: Adapter | None = None,
    of_weights: Callable[[Any, Adapter | None], str] | None = None,
) -> dict[str, Any]:
    """Digests of all that decides the numbers of a model on a text.

    Args:
        model: a transformers model; adapters that are active on it are part of what it is.
        tokenizer: its tokenizer; None where it is given tokens.
        adapter: a LoRA adapter that it reads with, by its name on the model or loaded beside it; None for those that
            are active.
        of_weights: :func:`fingerprint`, or one that remembers what it read, for a caller who asks for several
            identities while no weight changes.

    Returns:
        ``dtype``, ``fingerprint`` (of the weights), ``config``, and where there are such ``tokenizer`` and
        ``adapters``.
    """
    of_weights = of_weights or fingerprint
    adapters: list[Adapter] = [*active_adapters(model)] if adapter is None else [adapter]
    return {
        "dtype": str(model.dtype).removeprefix("torch."),
        "fingerprint": of_weights(model, None),
        "config": config_digest(model),
        **({} if tokenizer is None else {"tokenizer": tokenizer_digest(tokenizer)}),
        **(
            {"adapters": [digest([of_weights(model, name), scalings_of(model, name)]) for name in adapters]}
            if adapters
            else {}
        ),
    }


@torch.no_grad()
def fingerprint(model: Any, adapter: Adapter | None = None) -> str:
    """16 hexadecimal digits of all weights, of every number: about a second for each gigabyte.

    Args:
        model: a transformers model; LoRA adapters on it are left out.
        adapter: one of its LoRA adapters, by name, or one beside it, to take that alone.
    """
    weights_by_name = adapter.named_weights() if isinstance(adapter, LoadedAdapter) else whole_weights(model)
    digests = []
    for name, weights in weights_by_name:
        part = ".lora_" not in name
        if adapter is not None:
            part = isinstance(adapter, LoadedAdapter) or f".{adapter}." in name
        if part:
            plain = name.replace(".base_layer.", ".")  # as it was called before an adapter was put on
            if adapter is not None:  # without its name, which decides no number
                plain = plain.replace(f".{adapter if isinstance(adapter, str) else adapter.name}.", ".")
            digests.append([plain, list(weights.shape), _content(weights)])
    return digest(sorted(digests))


def _content(weights: Tensor) -> str:
    """A digest of a tensor's numbers, in their order."""
    content = hashlib.sha256(str(weights.dtype).encode())
    rows = max(1, HASHED_AT_ONCE * weights.shape[0] // weights.numel()) if weights.dim() and weights.numel() else 1
    for part in weights.detach().split(rows) if weights.dim() else [weights.detach()]:
        numbers: Any
        try:
            numbers = part.contiguous().cpu().flatten().view(torch.uint8).numpy()
        except (RuntimeError, TypeError, NotImplementedError):  # packed, as quantised weights are: what they stand for
            numbers = part.double().contiguous().cpu().flatten().view(torch.uint8).numpy()
        content.update(numbers)
    return content.hexdigest()


def config_digest(model: Any) -> str:
    """16 hexadecimal digits of a model's config, but for entries that decide no number.

    ``rope_theta`` is such a number that no weight tells, and so are windows, scales, epsilons and activations.
    """
    return digest(_numbers(json.loads(model.config.to_json_string(use_diff=False))))


def tokenizer_digest(tokenizer: Any) -> str:
    """16 hexadecimal digits of all that decides the tokens of a text, and the text of tokens.

    Of a fast tokenizer: vocabulary, merges, added tokens, normaliser, pre-tokenizer, post-processor and decoder, which
    its backend writes as JSON. Of any other: the files that it writes of its vocabulary, its words, settings and added
    tokens, and the tokens of a probe. Of both: special tokens and chat templates. Its name and its padding and
    truncation, which calls change, are left out.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    special = _attempted(lambda: tokenizer.special_tokens_map) or {}
    return digest(
        {
            "special": {name: str(token) for name, token in special.items()},
            "chat_template": _attempted(lambda: tokenizer.chat_template),
            "clean_up": getattr(tokenizer, "clean_up_tokenization_spaces", None),
            **({"backend": _backend(backend)} if hasattr(backend, "to_str") else _vocabulary(tokenizer)),
        }
    )


def _backend(backend: Any) -> str:
    """A digest of the backend of a fast tokenizer, without the padding and truncation of its last call."""
    return digest({name: part for name, part in json.loads(backend.to_str()).items() if name not in NOT_TOKENS})


def _vocabulary(tokenizer: Any) -> dict[str, Any]:
    """What there is of a tokenizer whose code is Python, sentencepiece or mistral-common."""
    added = _attempted(lambda: tokenizer.added_tokens_decoder) or {}
    return {
        "files": _files(tokenizer),
        "words": _attempted(lambda: digest(tokenizer.get_vocab())),
        "added": {str(index): repr(token) for index, token in added.items()},
        "settings": {
            name: value if isinstance(value, (str, int, float, bool)) else repr(value)
            for name, value in (_attempted(lambda: tokenizer.init_kwargs) or {}).items()
            if name not in NOT_TOKENS and not name.endswith(("_file", "_path"))
        },
        "probe": _attempted(lambda: list(tokenizer(PROBE)["input_ids"])),
    }


def _files(tokenizer: Any) -> list[str]:
    """Digests of the files of a tokenizer's vocabulary, as it writes them; mistral-common's has one, and no other."""
    with tempfile.TemporaryDirectory() as folder:
        if _attempted(lambda: tokenizer.save_vocabulary(folder)) is None:
            _attempted(lambda: tokenizer.save_pretrained(folder))
        files = [file for file in Path(folder).rglob("*") if file.is_file() and not file.name.endswith("_config.json")]
        return sorted(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)


def _attempted(part: Callable[[], Any]) -> Any:
    """A part of a tokenizer, None where its kind has none: the others still tell it."""
    try:
        return part()
    except (AttributeError, NotImplementedError, TypeError, ValueError, OSError):
        return None


def _numbers(value: Any) -> Any:
    """A config as JSON without the entries that decide no number, however deep."""
    if isinstance(value, Mapping):
        return {
            name: _numbers(part) for name, part in value.items() if name not in NOT_NUMBERS and not name.startswith("_")
        }
    return [_numbers(part) for part in value] if isinstance(value, list) else value


def digest(value: Any) -> str:
    """16 hexadecimal digits of a JSON-able value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True, ensure_ascii=False).encode()).hexdigest()[:16]
