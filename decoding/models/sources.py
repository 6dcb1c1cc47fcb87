"""What the name of a model stands for: a folder, a GGUF file, a fetched model, a name on the Hugging Face hub."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from transformers import AutoConfig
from transformers.utils import find_adapter_config_file

from decoding.errors import ModelError, nearest, one_line
from decoding.files import expanded
from decoding.models.builtin import BUILT_IN, BUILT_IN_ADAPTERS
from decoding.models.gguf import GgufFile, is_gguf, open_gguf
from decoding.models.releases import RELEASES, fetched_folder

__all__ = ["check_json_object", "check_no_hub_adapter", "hub_config", "source_and_file"]


def source_and_file(spec: str) -> tuple[str, GgufFile | None]:
    """The argument of ``from_pretrained``: a folder that was checked, or a hub name; and the GGUF file in it."""
    if not spec.strip():
        raise ModelError("the model's name is empty: give a folder, a .gguf file, a hub name or a built-in model")
    if spec in BUILT_IN_ADAPTERS:
        raise ModelError(f"{spec}: is a LoRA adapter; expected a model of its own, beside which it can be the amateur")
    if spec in RELEASES:
        folder = fetched_folder(spec)
        _check_no_adapter(spec, folder)
        return str(folder), None
    try:
        path = expanded(spec)
        if is_gguf(spec) and not path.is_dir():
            file = open_gguf(spec)
            _check_no_adapter(spec, file.path.parent)
            return str(file.path.parent), file
        return _folder_or_name(spec, path), None
    except (OSError, RuntimeError) as error:  # no permission, a name that is too long, links in a circle
        raise ModelError(f"{spec[:80]}: cannot be read ({one_line(error)})") from error


def _check_no_adapter(spec: str, folder: Path) -> None:
    """Raise ModelError where an adapter lies beside a model's weights: transformers would load the two as one model."""
    if (folder / "adapter_config.json").is_file():
        raise ModelError(
            f"{spec}: a LoRA adapter lies beside its weights and would be loaded with them; move adapter_config.json "
            "and adapter_model.safetensors to a folder of their own"
        )


def _folder_or_name(spec: str, folder: Path) -> str:
    if folder.is_file():
        raise ModelError(
            f"{spec}: is a file; expected a .gguf file, or the folder that holds config.json and the weights"
        )
    if not folder.is_dir():
        if spec.startswith((".", "~", os.sep)) or spec.count("/") > 1 or spec.endswith("/"):
            raise ModelError(f"{spec}: there is no such folder")
        return spec
    if not (folder / "config.json").is_file():
        kind = "holds a LoRA adapter" if (folder / "adapter_config.json").is_file() else "is no model folder"
        raise ModelError(f"{spec}: {kind} (no config.json); expected a folder that save_pretrained wrote")
    _check_no_adapter(spec, folder)
    # transformers ignores a generation_config.json that it cannot read, and then knows no end token.
    for name in ("config.json", "generation_config.json", "tokenizer_config.json"):
        check_json_object(spec, folder / name)
    return str(folder)


def check_json_object(spec: str, file: Path) -> None:
    """Raise ModelError where a file exists and holds no JSON object."""
    try:
        content = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    except (ValueError, OSError, RecursionError) as error:
        raise ModelError(f"{spec}: its {file.name} cannot be read ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise ModelError(f"{spec}: its {file.name} cannot be read (it holds a {type(content).__name__}, no object)")


def hub_config(name: str) -> Any:
    """The config of a hub model: from the local cache, else from the hub."""
    try:
        return AutoConfig.from_pretrained(name, local_files_only=True)
    except (OSError, ValueError):
        pass  # not downloaded before
    guess = nearest(name, [*BUILT_IN, *RELEASES], "known by name:")
    missing = f"{name}: there is no folder of this name, and"
    if not _hub_is_in_reach():
        raise ModelError(f"{missing} the Hugging Face hub is out of reach{guess}")
    try:
        return AutoConfig.from_pretrained(name)
    except Exception as error:
        raise ModelError(f"{missing} the Hugging Face hub returned no model ({one_line(error)}){guess}") from error


def check_no_hub_adapter(name: str) -> None:
    """Raise ModelError where an adapter lies beside a hub model's weights; see :func:`_check_no_adapter`."""
    try:
        found = find_adapter_config_file(name, local_files_only=not _hub_is_in_reach())
    except (OSError, ValueError):
        return  # whoever loads the weights asks the same and tells why
    if found is not None:
        raise ModelError(
            f"{name}: a LoRA adapter lies beside its weights on the hub and would be loaded with them; download the "
            "model to a folder without adapter_config.json"
        )


def _hub_is_in_reach() -> bool:
    """True where the hub's name resolves. Where it does not, the hub's client would retry for half a minute."""
    if os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE"):
        return False
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return True  # the proxy resolves names
    try:
        endpoint = urlsplit(os.environ.get("HF_ENDPOINT") or "https://huggingface.co")
        socket.getaddrinfo(endpoint.hostname, endpoint.port or 443)
    except OSError:
        return False
    return True
