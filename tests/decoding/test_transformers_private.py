"""What is private in transformers is used in one module, which knows the versions that it was tested with."""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import transformers
from tiny_models import tiny_model
from transformers import DynamicCache

from decoding import transformers_private
from decoding.errors import DecodingWarning
from decoding.versions import NEWEST_TRANSFORMERS, OLDEST_TRANSFORMERS, check_transformers

ROOT = Path(__file__).resolve().parents[2]
SOURCES = [path for folder in ("decoding", "evals", "tools") for path in (ROOT / folder).rglob("*.py")]
HOME = ROOT / "decoding" / "transformers_private.py"

# Names that begin with an underscore and are not transformers'.
OTHERS = {
    "_getframe", "_exit",  # sys and os
    "_python_dispatch", "_forward_pre_hooks", "_forward_hooks", "_parameters", "_orig_mod",  # torch
    "_mixed_batch_forward",  # peft
    "_hf_hook",  # accelerate
    "_loglikelihood_tokens", "_model_call", "_model_generate",  # lm-eval's class, which ours extends
    "_token_id",  # the end of public names
}  # fmt: skip
# Public by their names, but new or gone within the supported versions.
BOUND_TO_A_VERSION = {"DummyLayer", "ALL_CACHE_NAMES", "DEPRECATED_CACHE_NAMES", "past_key_values", "cache_params"}


def _used(path: Path) -> Iterator[tuple[int, str]]:
    """The line and the name of everything that may belong to transformers."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    defined = {node.name for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.ClassDef))}
    attributes = {
        node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store)
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and not (
            isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")
        ):
            if node.attr not in defined | attributes:
                yield node.lineno, node.attr
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("transformers"):
            yield from ((node.lineno, name) for alias in node.names for name in (alias.name,))
            yield from ((node.lineno, part) for part in (node.module or "").split("."))
        elif isinstance(node, ast.keyword) and node.arg:
            yield node.value.lineno, node.arg
        elif isinstance(node, ast.Constant) and isinstance(node.value, str) and node.value.isidentifier():
            yield node.lineno, node.value


def test_private_names_of_transformers_stand_in_one_module() -> None:
    names = re.compile(r"_[a-z]\w*")
    wrong = [
        f"{path.relative_to(ROOT)}:{line}: {name}"
        for path in SOURCES
        if path.resolve() != HOME
        for line, name in _used(path)
        if (names.fullmatch(name) and name not in OTHERS and name in _names_of_transformers())
        or name in BOUND_TO_A_VERSION
    ]
    assert wrong == []


def _names_of_transformers(cache: dict[str, set[str]] = {}) -> set[str]:  # noqa: B006
    """Identifiers with a leading underscore in the parts of transformers that generation runs through."""
    if not cache:
        home = Path(transformers.__file__).parent
        files = [*home.glob("*.py"), *home.glob("generation/*.py"), *home.glob("integrations/*.py")]
        cache["names"] = {
            name for file in files for name in re.findall(r"\b_[a-z]\w*", file.read_text(encoding="utf-8"))
        }
    return cache["names"]


def test_the_range_is_that_of_the_package() -> None:
    package = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    oldest, newest = OLDEST_TRANSFORMERS, NEWEST_TRANSFORMERS
    wanted = f"transformers>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"
    assert wanted in package["project"]["dependencies"]


@pytest.mark.parametrize("version", ["5.17.0", "5.23.0", "5.24.1", "5.20.0.dev0"])
def test_versions_within_the_range_say_nothing(version: str, recwarn: pytest.WarningsRecorder) -> None:
    check_transformers(version)
    assert not recwarn.list


@pytest.mark.parametrize("version", ["4.57.6", "5.16.1", "6.0.0"])
def test_versions_outside_of_the_range_are_refused_in_one_line(version: str) -> None:
    with pytest.raises(ImportError, match=r"decoding needs transformers 5\.17 to 5\.\d+, this is") as caught:
        check_transformers(version)
    assert version in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_newer_version_than_those_tested_is_warned_of() -> None:
    with pytest.warns(DecodingWarning, match="was tested with transformers"):
        check_transformers(f"5.{NEWEST_TRANSFORMERS[1] + 1}.0")


def test_every_entry_answers_for_a_model() -> None:
    model = tiny_model("llama")
    assert transformers_private.attention_implementation(model) == "sdpa"
    assert transformers_private.commit_hash(model) is None
    assert transformers_private.supports_logits_to_keep(model)
    cache = DynamicCache()
    assert not transformers_private.is_callers_cache(cache)
    assert transformers_private.cache_in({transformers_private.CACHE_ARGUMENT: cache}) is cache
    assert transformers_private.cache_in({}) is None
    with transformers_private.optimized_for_decode(model):
        pass
