"""Training a model to hallucinate, by LoRA on wrong answers (induced hallucination, 2312.15710)."""

from __future__ import annotations

import dataclasses
import json
import shutil
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from transformers import TrainingArguments

from decoding.errors import DecodingWarning, InputError, ModelError, OptionError, one_line
from decoding.files import locked, share_weights, write_whole
from decoding.induce.answers import NOT_LEARNT, AnswerLoss
from decoding.induce.examples import Example
from decoding.induce.recipe import Recipe
from decoding.models.adapters import adapters_of
from decoding.models.devices import input_device, is_offloaded, is_tensor_parallel
from decoding.models.identity import digest, identity
from decoding.models.settings import settings_kept
from decoding.models.structure import inspect_model
from decoding.models.wrappers import text_tokenizer, unwrapped
from decoding.parameters import require_count

__all__ = ["check_free_of_models", "induce"]

CHECKPOINTS = "checkpoints"
CHECKPOINT_SECONDS = 300.0  # between two checkpoints at most: an epoch of a real model can take an hour
RECORD = "induce.json"
# What a folder holds that a model was written to.
OF_A_MODEL = ("config.json", "*.gguf", "model*.safetensors", "pytorch_model*.bin")


def induce(
    model: Any,
    tokenizer: Any,
    examples: Sequence[Example],
    output: str | Path,
    recipe: Recipe | None = None,
    *,
    micro_batch: int = 8,
    report: Callable[[int, int, float | None], None] | None = None,
) -> dict[str, Any]:
    """Fine-tune a LoRA adapter on hallucinated answers and write it to a folder, to be the model's amateur.

    The loss covers the tokens of the answers alone, and the head is applied where they are learnt alone. Afterwards the
    model is as before, without the adapter. A run that was interrupted continues from its last checkpoint, which is
    some minutes old at most, when it is called again.

    Args:
        model: a decoder-only transformers model.
        tokenizer: its tokenizer.
        examples: see :func:`decoding.induce.read_examples`.
        output: the folder.
        recipe: hyper-parameters.
        micro_batch: examples per forward pass at most: the largest divisor of ``recipe.batch_size`` up to this counts.
            Gradients are accumulated.
        report: called after each step with the steps done, all steps and the loss of the step (None where not known).

    Returns:
        The content of ``induce.json``: recipe, counts, losses.

    Raises:
        ModelError: peft or accelerate is not installed, the model cannot take a LoRA adapter, or not all of its weights
            are on devices of this process.
        InputError: no examples, or none that fits.
        OptionError: the folder holds a model or a run with other settings, another run is writing it, or it cannot be
            written.
    """
    recipe = recipe or Recipe()
    require_count("micro_batch", micro_batch, 1)
    output = Path(output)
    with _written(output):
        check_free_of_models(output)
    model, tokenizer = unwrapped(model), text_tokenizer(tokenizer)
    _check_packages()
    _check_trainable(model)
    rows = _tokenized(tokenizer, examples, recipe)
    with _written(output):
        output.mkdir(parents=True, exist_ok=True)
    with _alone(output):
        _check_resumable(output, digest([identity(model), dataclasses.asdict(recipe), rows]))
        with _lora_layers(model, recipe) as wrapped:
            trainer = _trainer(wrapped, tokenizer, rows, output, recipe, micro_batch, report)
            try:
                _remove_unfinished(output / CHECKPOINTS)
                with _written(output):
                    outcome = trainer.train(resume_from_checkpoint=_last_checkpoint(output))
                    wrapped.save_pretrained(str(output))
                    share_weights(output, like="adapter_config.json")
            except OptionError:
                # Or an incomplete adapter would pass for a whole one.
                (output / "adapter_config.json").unlink(missing_ok=True)
                raise
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        record = {
            "model": getattr(model, "name_or_path", "") or type(model).__name__,
            "examples": len(rows),
            "left_out": len(examples) - len(rows),
            "steps": trainer.state.global_step,
            "first_loss": losses[0] if losses else None,
            "last_loss": losses[-1] if losses else None,
            "training_loss": outcome.training_loss,
            "recipe": dataclasses.asdict(recipe),
            "versions": {"torch": torch.__version__, "peft": version("peft")},
        }
        with _written(output):
            write_whole(output / RECORD, json.dumps(record, indent=2) + "\n")
        shutil.rmtree(output / CHECKPOINTS, ignore_errors=True)
        return record


def check_free_of_models(output: Path) -> None:
    """Raise OptionError where a folder holds a model: an adapter beside it would be loaded with it."""
    found = next((file for name in OF_A_MODEL for file in sorted(output.glob(name))), None)
    if found is not None:
        raise OptionError(f"{output}: holds a model ({found.name}); give a folder of its own for the adapter")


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Let no other run write to a folder until the end of the block.

    Raises:
        OptionError: another run is writing it, or it cannot be read.
    """
    with ExitStack() as held:
        try:
            held.enter_context(locked(output, wait=False))
        except BlockingIOError as error:
            raise OptionError(
                f"{output}: another run is writing it; wait for its end or give another folder"
            ) from error
        except OSError as error:
            raise OptionError(f"{output}: cannot be read ({one_line(error)})") from error
        yield


def _check_packages() -> None:
    """Raise ModelError where peft or accelerate is not installed."""
    from transformers.utils.import_utils import is_accelerate_available, is_peft_available

    for package, is_there in (("peft", is_peft_available()), ("accelerate", is_accelerate_available())):
        if not is_there:
            raise ModelError(f"induce needs {package}: pip install 'contrastive-decoding[lora]'")


def _check_trainable(model: Any) -> None:
    """Raise ModelError where a model has adapters, or weights on which this process cannot train one."""
    if adapters_of(model):
        raise ModelError("the model has adapters already: induce an amateur on the model without them")
    if is_offloaded(model) or is_tensor_parallel(model):
        where = "in other processes (tensor parallelism)" if is_tensor_parallel(model) else "offloaded to CPU or disk"
        raise ModelError(
            f"the model has weights {where}, where no adapter can be trained on them: it must be on one device, or "
            "split over devices of this process"
        )


@contextmanager
def _lora_layers(model: Any, recipe: Recipe) -> Iterator[Any]:
    """Put new LoRA layers on a model, which is as before after the context."""
    import peft

    config = peft.LoraConfig(
        r=recipe.rank, lora_alpha=recipe.lora_alpha, lora_dropout=recipe.dropout, task_type="CAUSAL_LM",
        target_modules=_target_modules(model),
    )  # fmt: skip
    torch.manual_seed(recipe.seed)
    with settings_kept(model):
        wrapped = peft.get_peft_model(model, config)
        try:
            yield wrapped
        finally:
            wrapped.unload()
            # unload() takes the LoRA layers out and leaves their configuration on the model.
            vars(model).pop("peft_config", None)


class _OneGPU(TrainingArguments):
    """Arguments of a trainer that takes one GPU: each of several would have a micro-batch, and steps be larger."""

    @property
    def n_gpu(self) -> int:
        """The number of GPUs; 0 on a CPU."""
        return min(super().n_gpu, 1)


def _trainer(
    wrapped: Any,
    tokenizer: Any,
    rows: list[dict[str, list[int]]],
    output: Path,
    recipe: Recipe,
    micro_batch: int,
    report: Callable[[int, int, float | None], None] | None,
) -> Any:
    """Return the transformers Trainer of a model with LoRA layers."""
    from transformers import Trainer, TrainerCallback
    from transformers.trainer_callback import PrinterCallback

    batch = min(recipe.batch_size, len(rows))
    micro = max(size for size in range(1, min(micro_batch, batch) + 1) if batch % size == 0)
    model = wrapped.get_base_model()
    device = input_device(model).type
    on_gpu = device == "cuda"
    arguments = _OneGPU(
        output_dir=str(output / CHECKPOINTS), per_device_train_batch_size=micro,
        gradient_accumulation_steps=batch // micro,
        num_train_epochs=recipe.epochs, learning_rate=recipe.learning_rate, lr_scheduler_type="linear",
        seed=recipe.seed, save_strategy="epoch", save_total_limit=1, logging_strategy="steps", logging_steps=1,
        report_to=[], disable_tqdm=True, remove_unused_columns=False, use_cpu=device == "cpu",
        dataloader_pin_memory=on_gpu, bf16=on_gpu and model.dtype == torch.bfloat16,
    )  # fmt: skip

    class Progress(TrainerCallback):
        def __init__(self) -> None:
            self.saved = time.monotonic()

        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            if time.monotonic() - self.saved >= CHECKPOINT_SECONDS:
                control.should_save = True

        def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            self.saved = time.monotonic()

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **kwargs: Any) -> None:
            if report is not None and logs and "loss" in logs:
                report(state.global_step, state.max_steps, float(logs["loss"]))

    loss = AnswerLoss(inspect_model(model))

    class OfAnswers(Trainer):
        def compute_loss(self, model: Any, inputs: Any, *args: Any, **kwargs: Any) -> Any:
            with loss.counted(inputs["labels"]):
                return super().compute_loss(model, inputs, *args, **kwargs)

    trainer = OfAnswers(
        model=wrapped, args=arguments, train_dataset=rows, data_collator=_Collator(tokenizer), compute_loss_func=loss,
        callbacks=[Progress()],
    )  # fmt: skip
    trainer.remove_callback(PrinterCallback)
    return trainer


def _last_checkpoint(output: Path) -> str | None:
    from transformers.trainer_utils import get_last_checkpoint

    found: str | None = get_last_checkpoint(str(output / CHECKPOINTS))
    return found


@contextmanager
def _written(output: Path) -> Iterator[None]:
    """Raise failures to write in this context as one clear error.

    Raises:
        OptionError: ``output`` cannot be written.
    """
    try:
        yield
    except (OSError, SafetensorError, RuntimeError) as error:
        if isinstance(error, RuntimeError) and "PytorchStreamWriter" not in str(error):
            raise
        raise OptionError(
            f"{output}: cannot be written ({one_line(error)}); free some space and give the same command "
            "again: it continues from the last checkpoint"
        ) from error


def _remove_unfinished(checkpoints: Path) -> None:
    """Remove checkpoints whose writing was cut short: the trainer's state is written last."""
    for checkpoint in checkpoints.glob("checkpoint-*"):
        if not (checkpoint / "trainer_state.json").is_file():
            shutil.rmtree(checkpoint, ignore_errors=True)


def _tokenized(tokenizer: Any, examples: Sequence[Example], recipe: Recipe) -> list[dict[str, list[int]]]:
    """Token ids and labels of each example; the label NOT_LEARNT leaves a token out of the loss."""
    rows = []
    end = [tokenizer.eos_token_id] if tokenizer.eos_token_id is not None else []
    for example in examples:
        question = list(tokenizer(recipe.template.replace("{question}", example.question))["input_ids"])
        answer = list(tokenizer(" " + example.answer, add_special_tokens=False)["input_ids"])
        ids = [*question, *answer, *end][: recipe.max_length]
        if len(ids) > len(question):
            rows.append({"input_ids": ids, "labels": [NOT_LEARNT] * len(question) + ids[len(question) :]})
    if not rows:
        raise InputError(
            f"no example has a question shorter than max_length={recipe.max_length} tokens and an answer"
            if examples
            else "no examples: give at least one question with a hallucinated answer"
        )
    if len(rows) < len(examples):
        warnings.warn(
            f"{len(examples) - len(rows)} of {len(examples)} examples are left out: their questions alone reach "
            f"max_length={recipe.max_length} tokens",
            DecodingWarning,
            stacklevel=3,
        )
    return rows


class _Collator:
    """Rows padded on the right, which a causal model needs no mask for but the loss does."""

    def __init__(self, tokenizer: Any) -> None:
        pad = tokenizer.pad_token_id
        self.pad = pad if pad is not None else 0

    def __call__(self, rows: list[dict[str, list[int]]]) -> dict[str, torch.Tensor]:
        width = max(len(row["input_ids"]) for row in rows)

        def padded(name: str, value: int) -> torch.Tensor:
            return torch.tensor([row[name] + [value] * (width - len(row[name])) for row in rows])

        mask = torch.tensor([[1] * len(row["input_ids"]) + [0] * (width - len(row["input_ids"])) for row in rows])
        return {
            "input_ids": padded("input_ids", self.pad),
            "labels": padded("labels", NOT_LEARNT),
            "attention_mask": mask,
        }


def _target_modules(model: Any) -> list[str]:
    """The linear layers inside the decoder layers: the head and the embeddings stay those of the expert."""
    layers = inspect_model(model).layers
    if layers is None:
        raise ModelError(f"{type(model).__name__}: its decoder layers were not found, so no adapter can be put on them")
    from transformers.pytorch_utils import Conv1D

    names = {
        name.rpartition(".")[2]
        for name, module in layers[0].named_modules()
        if isinstance(module, (torch.nn.Linear, Conv1D))
    }
    if not names:
        raise ModelError(f"{type(model).__name__}: its layers hold no linear layers that LoRA could adapt")
    return sorted(names)


def _check_resumable(output: Path, fingerprint: str) -> None:
    """Note the fingerprint of this run, or refuse to continue from the checkpoints of another one."""
    noted = output / CHECKPOINTS / "fingerprint"
    if noted.is_file() and noted.read_text() != fingerprint:
        raise OptionError(
            f"{output}: holds a run that was begun with another model, another recipe or other data; finish it with "
            f"those, or remove its {CHECKPOINTS} folder"
        )
    with _written(output):
        noted.parent.mkdir(parents=True, exist_ok=True)
        write_whole(noted, fingerprint)
