"""What a page shows as Python and as a command line: the same texts without the page."""

from __future__ import annotations

import dataclasses
import importlib
import shlex
from collections.abc import Sequence

from decoding.errors import OptionError
from decoding.play.requests import TextRequest, Written
from decoding.strategies.baselines import Baseline
from decoding.strategies.parameters_text import as_text
from decoding.strategies.registry import StrategySpec, parse_strategy

__all__ = ["as_command", "as_python"]


def as_python(request: TextRequest) -> str:
    """A program that prints the text, from its prompt or from where it was branched."""
    spec = request.spec
    imports = ["import torch"] if spec.is_stochastic or request.kept else []
    imports.append("import decoding")
    arguments = ["model", "**inputs"]
    lines = []
    if isinstance(spec.strategy, Baseline):
        arguments += [
            f"do_sample={spec.is_stochastic}",
            *(f"{name}={value!r}" for name, value in spec.parameters.items()),
        ]
    else:
        home, name = _home(type(spec.strategy))
        imports.append(f"from {home} import {name}")
        lines.append(f"strategy = {name}({', '.join(f'{key}={value!r}' for key, value in _changed(spec))})")
        arguments += ["strategy=strategy", *(["do_sample=True"] if spec.is_stochastic else [])]
    arguments += ["tokenizer=tokenizer", f"max_new_tokens={_new_tokens(request)}"]
    lines += [f"torch.manual_seed({request.seed})"] if spec.is_stochastic else []
    lines += [
        f"sequences = decoding.generate({', '.join(arguments)})",
        "print(tokenizer.decode(sequences[0], skip_special_tokens=True))",
    ]
    return "\n".join([*imports, "", f"model, tokenizer = decoding.load({request.model!r})", *_inputs(request), *lines])


def as_command(texts: Sequence[TextRequest | Written]) -> str:
    """Command lines that print the texts: one for those that begin with the same words."""
    groups: dict[tuple[str, str, int, int, bool], list[StrategySpec]] = {}
    lines = []
    for text in texts:
        request = text.request if isinstance(text, Written) else text
        prompt = request.prompt
        if request.kept:
            explanation = text.explanation if isinstance(text, Written) else None
            if request.chat or explanation is None or explanation.texts is None:
                lines.append(
                    f"# {request.spec.label}: goes on from tokens within an answer, which Python alone can give"
                )
                continue
            prompt += "".join(explanation.texts[request.start : request.start + len(request.kept)])
        key = (request.model, prompt, _new_tokens(request), request.seed, request.chat)
        group = groups.setdefault(key, [])
        if request.spec not in group:
            group.append(request.spec)
    for (model, prompt, new_tokens, seed, chat), specs in groups.items():
        words = ["--model", model, "--prompt", prompt, "--max-new-tokens", str(new_tokens), "--seed", str(seed)]
        words += ["--chat"] if chat else []
        if all(map(_is_read_again, specs)):
            lines.append(shlex.join(["decoding", "compare", *words, *_options("--strategy", [s.spec for s in specs])]))
            continue
        for spec in specs:  # a text with a comma in it, say
            settings = [f"{name}={as_text(value)}" for name, value in _changed(spec)]
            strategy = ["--strategy", spec.name, *_options("--set", settings)]
            lines.append(shlex.join(["decoding", "generate", *words, *strategy]))
    return "\n".join(lines)


def _inputs(request: TextRequest) -> list[str]:
    if request.chat:
        lines = [
            f'messages = [{{"role": "user", "content": {request.prompt!r}}}]',
            "inputs = tokenizer.apply_chat_template(",
            '    messages, add_generation_prompt=True, return_tensors="pt", return_dict=True',
            ")",
        ]
    else:
        lines = [f'inputs = tokenizer({request.prompt!r}, return_tensors="pt")']
    if request.kept:
        lines += [
            f"kept = torch.tensor([{list(request.kept)}])  # the tokens up to the branch",
            'tokens = torch.cat([inputs["input_ids"], kept], dim=1)',
            'inputs = {"input_ids": tokens, "attention_mask": torch.ones_like(tokens)}',
        ]
    return lines


def _new_tokens(request: TextRequest) -> int:
    """How many are wanted after those that are kept."""
    return max(request.max_new_tokens - len(request.kept), 1)


def _home(strategy_class: type) -> tuple[str, str]:
    """Where a class is imported from: its package, where that has it, or else its module."""
    package, name = strategy_class.__module__.partition(".")[0], strategy_class.__name__
    is_public = getattr(importlib.import_module(package), name, None) is strategy_class
    return (package if is_public else strategy_class.__module__), name


def _changed(spec: StrategySpec) -> list[tuple[str, object]]:
    """The parameters that are not at their default."""
    default = {field.name: field.default for field in dataclasses.fields(spec.strategy)}
    return [(name, value) for name, value in spec.parameters.items() if value != default[name]]


def _is_read_again(spec: StrategySpec) -> bool:
    try:
        return parse_strategy(spec.spec) == spec
    except OptionError:
        return False


def _options(option: str, values: Sequence[str]) -> list[str]:
    return [word for value in values for word in (option, value)]
