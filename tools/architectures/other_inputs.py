"""Model types with other inputs than the text before: encoder-decoders, and models of images and sound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import PreTrainedModel
from transformers.models.auto import modeling_auto
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from decoding.errors import ModelError, one_line
from decoding.tools.architectures.reference import Prompt, prompts
from decoding.tools.architectures.tiny import VOCAB, scale_weights, shrunk

__all__ = ["other_input_types", "prompts_of", "tiny_other_inputs"]

MAPPINGS = ("SEQ_TO_SEQ_CAUSAL_LM", "SPEECH_SEQ_2_SEQ", "IMAGE_TEXT_TO_TEXT")
LARGEST = 40_000_000  # parameters; a type that cannot be made smaller is not built
# Random models end at random.
ENDS = ("eos_token_id", "forced_eos_token_id", "forced_bos_token_id", "suppress_tokens", "begin_suppress_tokens")
ENCODED = (7, 11)  # tokens or frames of the two rows that an encoder reads


def other_input_types() -> dict[str, str]:
    """The classes, by model type, of transformers' sequence-to-sequence, speech and image-to-text mappings."""
    classes: dict[str, str] = {}
    for name in MAPPINGS:
        classes |= getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES") | classes
    return dict(sorted(classes.items()))


def is_encoder_decoder(model_type: str) -> bool:
    """Return whether a type generates text by a decoder that attends to an encoder."""
    return bool(getattr(CONFIG_MAPPING[model_type], "is_encoder_decoder", False))


def tiny_other_inputs(model_type: str, seed: int = 0) -> PreTrainedModel:
    """A random model of a type, in float32, eval mode, without end tokens.

    Raises:
        ModelError: the type cannot be built; the message is the reason.
    """
    torch.manual_seed(seed)
    model_class = getattr(transformers, other_input_types()[model_type])
    try:
        config_class = CONFIG_MAPPING[model_type]
        fields = _without_roles(shrunk(config_class, model_type))
        if model_type.endswith("encoder-decoder"):  # any encoder and any decoder, BERT twice by default
            fields["decoder"] |= {"is_decoder": True, "add_cross_attention": True}
        config = config_class(**fields)
        with torch.device("meta"):
            size = sum(parameter.numel() for parameter in model_class(config).parameters())
        if size > LARGEST:
            raise ValueError(f"{size / 1e6:.0f} million parameters are left when its widths are shrunk")
        model = model_class(config).float().eval()
    except Exception as error:  # of any kind, from the type's own code: the reason why it cannot be built
        raise ModelError(f"{model_type}: cannot be built ({type(error).__name__}: {one_line(error)})") from error
    scale_weights(model)
    if getattr(model, "generation_config", None) is not None:
        for name in ENDS:
            setattr(model.generation_config, name, None)
        model.generation_config.num_beams = 1  # FSMT's default is 5
        if model.config.is_encoder_decoder:
            model.generation_config.decoder_start_token_id = 1
    return model


def _without_roles(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields without those that would make every part a decoder."""
    roles = ("is_decoder", "is_encoder_decoder")
    return {
        name: _without_roles(value) if isinstance(value, dict) else value
        for name, value in fields.items()
        if name not in roles
    }


def prompts_of(model: Any) -> Callable[[int], list[Prompt]]:
    """A function from a seed to two prompts of different lengths: texts, or encoder inputs with a text of one token."""
    if not model.config.is_encoder_decoder:
        return prompts

    def make(seed: int) -> list[Prompt]:
        generator = torch.Generator().manual_seed(seed)
        return [Prompt([1], _encoded(model, length, generator)) for length in ENCODED]

    return make


def _encoded(model: Any, length: int, generator: torch.Generator) -> dict[str, Tensor]:
    """Token ids (1, length) for an encoder, or states (1, length, dim) of an encoder of other inputs."""
    if model.main_input_name == "input_ids":
        ids = {"input_ids": torch.randint(10, VOCAB, (1, length), generator=generator)}
        if "bbox" in model.forward.__code__.co_varnames:
            ids["bbox"] = torch.rand(1, length, 4, generator=generator)
        return ids
    width = model.get_encoder().config.hidden_size
    return {"encoder_outputs": torch.randn(1, max(ENCODED), width, generator=generator)}
