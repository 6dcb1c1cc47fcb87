"""GGUF files: whether one can be read, and what transformers leaves out of what it says.

transformers reads the weights and makes the tokenizer. These parts of a file it does not follow, or not in every
version, and llama.cpp, for which such files are made, does: whether a text begins with the BOS token, how digits are
split, whole words before merges, the tokens that end a turn, a scaled rotary embedding, Gemma 3's scale of attention.
"""

from __future__ import annotations

import importlib.util
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tokenizers import decoders, pre_tokenizers

from decoding.errors import DecodingWarning, ModelError, one_line
from decoding.files import expanded
from decoding.transformers_private import detach_gguf_quantizer, gguf_architectures, read_gguf

__all__ = [
    "GgufFile",
    "complete_config",
    "complete_model",
    "complete_tokenizer",
    "is_gguf",
    "open_gguf",
    "require_packages",
]

MAGIC = b"GGUF"
INSTALL = "pip install 'contrastive-decoding[gguf]'"

# Names of pre-tokenizers (tokenizer.ggml.pre), as llama.cpp's table groups them. Each digit is a word of its own, and
# the rest is split as GPT-2 splits it:
SINGLE_DIGITS = {"codeshell", "command-r", "exaone", "mellum2", "minerva-7b", "refact", "smollm", "starcoder"}
# Split as GPT-2 splits, which is how transformers splits where it does not know the name:
AS_GPT2 = {
    "a.x-4.0", "exaone4", "gigachat", "gpt-2", "granite-docling", "jais", "jina-de", "jina-es", "jina-v1-en",
    "jina-v2-code", "jina-v2-de", "jina-v2-es", "mellum", "modern-bert", "mpt", "olmo", "phi-2", "roberta-bpe",
    "trillion",
}  # fmt: skip
# A word that is in the vocabulary is one token, whatever the merges say, and a text begins with BOS where the file does
# not say otherwise:
LIKE_LLAMA3 = {
    "falcon-h1", "falcon3", "jina-v5-nano", "lfm2", "llama-bpe", "llama-v3", "llama3", "midm-2.0", "pixtral", "tekken",
}  # fmt: skip

# Special tokens of a tokenizer, by their names in a file. (5.17 guesses some.)
SPECIAL = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}

# Control tokens that end a turn in a chat template. A file names one end token, and seldom this one.
TURN_ENDS = ("<|im_end|>", "<|eot_id|>", "<|eom_id|>", "<|end|>", "<end_of_turn>", "<end_of_utterance>")


@dataclass(frozen=True)
class GgufFile:
    """A GGUF file that was checked.

    Attributes:
        path: absolute.
        metadata: its keys and values; an array of strings is its length.
        tensors: names of its weights.
    """

    path: Path
    metadata: Mapping[str, Any]
    tensors: frozenset[str]

    @property
    def architecture(self) -> str:
        """The architecture's name in llama.cpp."""
        return str(self.metadata["general.architecture"])

    def of_model(self, key: str) -> Any:
        """Return the value of a key that begins with the architecture's name; None where there is none."""
        return self.metadata.get(f"{self.architecture}.{key}")


def is_gguf(spec: str) -> bool:
    """Return True for a path that ends in ``.gguf``."""
    return spec.lower().endswith(".gguf")


def open_gguf(spec: str) -> GgufFile:
    """Check a GGUF file and return it.

    Args:
        spec: its path.

    Raises:
        ModelError: there is no such file, it cannot be read, it is no GGUF file or not all of one, transformers does
            not read its architecture, or a package is missing.
    """
    path = expanded(spec)
    try:
        if not path.is_file():
            raise ModelError(f"{spec}: there is no such file")
        with path.open("rb") as stream:
            if stream.read(len(MAGIC)) != MAGIC:
                raise ModelError(f"{spec}: is no GGUF file (it does not begin with {MAGIC.decode()})")
        size = path.stat().st_size
    except OSError as error:
        raise ModelError(f"{spec[:80]}: cannot be read ({one_line(error)})") from error
    require_packages(spec)
    path = path.resolve()
    try:
        metadata, tensors, end = read_gguf(path)
    except (struct.error, UnicodeDecodeError, IndexError, OverflowError, MemoryError) as error:
        raise ModelError(f"{spec}: is cut short or damaged: its header cannot be read ({one_line(error)})") from error
    except Exception as error:  # an older version of the format, metadata of an unknown type
        raise ModelError(f"{spec}: its header cannot be read ({one_line(error)})") from error
    if end is not None and end > size:
        raise ModelError(f"{spec}: is cut short: its weights end at byte {end}, and the file at byte {size}")
    file = GgufFile(path, metadata, frozenset(tensors))
    if metadata.get("split.count", 0) > 1:
        raise ModelError(
            f"{spec}: is one of {metadata['split.count']} files that hold the model together; join them with "
            "llama-gguf-split --merge"
        )
    if file.architecture not in (known := gguf_architectures()):
        raise ModelError(
            f"{spec}: transformers reads no GGUF file of the architecture {file.architecture!r}; must be "
            f"{', '.join(sorted(known))}"
        )
    return file


def require_packages(spec: str) -> None:
    """Check that the packages are there that transformers reads GGUF files with.

    Args:
        spec: the file or the model that they are needed for.

    Raises:
        ModelError: one is not.
    """
    for package in ("gguf", "accelerate"):
        if importlib.util.find_spec(package) is None:
            raise ModelError(f"{spec}: a GGUF file needs the package {package}: {INSTALL}")


def complete_config(config: Any, file: GgufFile) -> None:
    """Put what the file says of attention into a config that transformers made of it.

    Warns:
        DecodingWarning: the file scales its rotary embedding in a way that transformers leaves out.
    """
    if file.architecture == "gemma3":
        large = file.of_model("block_count") == 62  # Gemma 3 27B alone divides by other than the size of a head
        config.query_pre_attn_scalar = config.hidden_size // config.num_attention_heads if large else config.head_dim
    kind = file.of_model("rope.scaling.type") or "none"
    parameters = getattr(config, "rope_parameters", None)
    if kind == "linear" and parameters:
        scaled = parameters.get("full_attention", parameters)  # Gemma's windows have the plain embedding
        scaled |= {"rope_type": "linear", "factor": float(file.of_model("rope.scaling.factor"))}
        return
    factors = sorted(name for name in file.tensors if name.startswith(("rope_freqs", "rope_factors")))
    if (kind != "none" or factors) and (not parameters or parameters.get("rope_type", "default") == "default"):
        warnings.warn(
            f"{file.path}: scales its rotary embedding ({', '.join([kind, *factors] if kind != 'none' else factors)}), "
            "which transformers leaves out: the model reads positions otherwise than it was trained to; its own folder "
            "has the scaling",
            DecodingWarning,
            stacklevel=2,
        )


def complete_tokenizer(tokenizer: Any, file: GgufFile) -> None:
    """Make a tokenizer that transformers read from a file give the tokens that llama.cpp gives.

    Warns:
        DecodingWarning: the file splits text in a way that is known neither to transformers nor here.
    """
    kind, split = (file.metadata.get(f"tokenizer.ggml.{key}") for key in ("model", "pre"))
    backend = tokenizer.backend_tokenizer
    if kind == "gpt2":
        backend.decoder = decoders.ByteLevel()  # 5.17's takes a space from the beginning
        if split in SINGLE_DIGITS:
            backend.pre_tokenizer = pre_tokenizers.Sequence(
                [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
            )
        elif split not in AS_GPT2 and isinstance(backend.pre_tokenizer, pre_tokenizers.ByteLevel):
            warnings.warn(
                f"{file.path}: its tokenizer splits text as {split!r}, which is not known here: it is split as GPT-2's "
                "does, and some tokens may not be the model's; the model's own folder has its tokenizer",
                DecodingWarning,
                stacklevel=2,
            )
        if split in LIKE_LLAMA3:
            backend.model.ignore_merges = True
    for name, key in SPECIAL.items():
        number = file.metadata.get(f"tokenizer.ggml.{key}_token_id")
        if number is not None and getattr(tokenizer, name) != (token := tokenizer.convert_ids_to_tokens(number)):
            setattr(tokenizer, name, token)
    if kind == "gemma4":
        return  # its chat template has the BOS token
    begins = file.metadata.get("tokenizer.ggml.add_bos_token", kind == "llama" or split in LIKE_LLAMA3)
    ends = file.metadata.get("tokenizer.ggml.add_eos_token", kind == "t5")
    tokens = tokenizer("a")["input_ids"]
    if tokenizer.bos_token is not None and (tokens[:1] == [tokenizer.bos_token_id]) != bool(begins):
        tokenizer.add_bos_token = bool(begins)
    if tokenizer.eos_token is not None and (tokens[-1:] == [tokenizer.eos_token_id]) != bool(ends):
        tokenizer.add_eos_token = bool(ends)


def complete_model(model: Any, tokenizer: Any, file: GgufFile) -> None:
    """Make a model that transformers read from a file an ordinary one that knows its file and its end tokens."""
    detach_gguf_quantizer(model)  # the weights are plain tensors: they can be saved and trained
    model.name_or_path = model.config.name_or_path = str(file.path)  # which adapters name as their base
    ends = _end_tokens(tokenizer, file)
    if len(ends) > 1:
        model.generation_config.eos_token_id = model.config.eos_token_id = ends


def _end_tokens(tokenizer: Any, file: GgufFile) -> list[int]:
    """The tokens that end a text: those that the file names, and those that end a turn of its chat template."""
    named = [file.metadata.get(f"tokenizer.ggml.{key}_token_id") for key in ("eos", "eot", "eom")]
    template, vocabulary = tokenizer.chat_template, tokenizer.get_vocab()
    turns = [vocabulary.get(token) for token in TURN_ENDS if isinstance(template, str) and token in template]
    return list(dict.fromkeys(int(token) for token in (*named, *turns) if token is not None))
