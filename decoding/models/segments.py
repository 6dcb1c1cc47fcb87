"""Speech recognisers whose ``generate`` cuts long sound into segments and decodes one after another: Whisper.

Each segment is a call of ``GenerationMixin.generate`` for the rows that are not finished, once for each temperature
that is tried. What such a call is given fits the segment, but for the mask of frames, which is that of the whole sound.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from decoding.errors import InputError, OptionError

__all__ = ["check_one_segment", "check_segment_seeds", "cuts_segments", "is_long", "of_segment", "segment_frames"]


def cuts_segments(model: Any) -> bool:
    """True of a model whose own ``generate`` decodes sound segment by segment."""
    return hasattr(model, "generate_with_fallback")


def segment_frames(model: Any) -> int:
    """The frames of one segment, which is what the encoder hears: 3000 for 30 seconds."""
    encoder = model.get_encoder()
    return int(model.config.max_source_positions * encoder.conv1.stride[0] * encoder.conv2.stride[0])


def is_long(model: Any, inputs: Mapping[str, Any]) -> bool:
    """True where the sound among the inputs (``input_features``) has more frames than one segment."""
    features = inputs.get("input_features")
    return cuts_segments(model) and isinstance(features, Tensor) and features.shape[-1] > segment_frames(model)


def check_one_segment(model: Any, inputs: Mapping[str, Any], instead: str) -> None:
    """Refuse sound of more than one segment.

    Args:
        model: that hears it.
        inputs: of a call.
        instead: what is done with segments, and what to give.

    Raises:
        InputError: it is longer.
    """
    if is_long(model, inputs):
        raise InputError(
            f"input_features have {inputs['input_features'].shape[-1]} frames and the model hears "
            f"{segment_frames(model)} at a time: {instead}"
        )


def of_segment(model: Any, named: Mapping[str, Any]) -> dict[str, Any]:
    """The inputs of a call for one segment, without the mask of frames: it has the rows and the frames of the whole
    sound, and an encoder that hears segments reads none. Those of another model as they are.
    """
    return {name: value for name, value in named.items() if name != "attention_mask" or not cuts_segments(model)}


def check_segment_seeds(model: Any, generation_config: Any) -> None:
    """Refuse seeds of rows where a row is decoded in several calls, of which each would draw the same numbers.

    Raises:
        OptionError: names what to do instead.
    """
    names = ("return_timestamps", "logprob_threshold", "compression_ratio_threshold")
    if cuts_segments(model) and any(getattr(generation_config, name, None) for name in names):
        raise OptionError(
            f"seeds: {type(model).__name__} decodes a row in several calls, its segments and what is tried again, and "
            "each would draw the same numbers: call torch.manual_seed(...) before a call with one sound"
        )
