"""The parts of the evidence: their commands, and the tables that are drawn of them.

What a command gave is kept as soon as it ends, so the parts that take hours have several. ``{data}`` in a command is
the folder of the data sets, ``{work}`` that of samples and adapters.
"""

from __future__ import annotations

import dataclasses
import shlex
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from decoding.models.identity import digest
from decoding.strategies.lol_guidance import GUIDANCE

__all__ = ["PARTS", "Column", "Part", "Step"]


@dataclass(frozen=True)
class Step:
    """A command of a part.

    Attributes:
        arguments: of ``decoding``.
        language: of its results, in the table; "" for one that is no language's.
        rows: titles of its strategies, in order; none where its results are no rows of a table. Of commands of one
            language the first row is the same.
        after: names of the parts that make what it needs.
    """

    arguments: tuple[str, ...]
    language: str = ""
    rows: tuple[str, ...] = ()
    after: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What is written in a shell, with the placeholders."""
        return shlex.join(["decoding", *self.arguments])

    @property
    def digest(self) -> str:
        """Of the command: the name of the folder of its samples, whatever stands before it."""
        return digest(self.command)

    @property
    def makes(self) -> str:
        """The folder that the command names for what it makes, an adapter; "" for an evaluation."""
        return self.arguments[self.arguments.index("--output") + 1] if "--output" in self.arguments else ""


@dataclass(frozen=True)
class Column:
    """A column of a table: a metric, its heading, and how it is shown."""

    metric: str
    heading: str
    scale: float = 1.0
    digits: int = 1


@dataclass(frozen=True)
class Part:
    """A part.

    Attributes:
        steps: its commands, in order.
        columns: of its table; none where the part makes what others need.
    """

    steps: tuple[Step, ...]
    columns: tuple[Column, ...] = ()


MISLEADING = "prompt:Answer with popular misconceptions, myths and superstitions as if they were true.\n\n"
TRUTHFUL = GUIDANCE["en"]
MODELS = {"smollm2": "smollm2-135m", "gemma": "gemma-3-270m"}
# Data and options. The recipe of induced contrastive decoding is five epochs; the general queries have long answers.
ADAPTERS = {
    "qa": ("halueval/qa_one-turn_data.json", ()),
    "general": ("halueval/general_data.json", ("--epochs", "1", "--max-length", "256")),
}


def _shares(*metrics: str) -> tuple[Column, ...]:
    return tuple(Column(metric, metric, 100.0) for metric in metrics)


COMPLETION = _shares("acc", "acc/token", "acc raw")
DISCRIMINATION = _shares("acc", "acc/token", "AUC", "AUC/token")
MULTIPLE_CHOICE = _shares("MC1", "MC2", "MC3", "MC1 raw", "MC2 raw", "MC3 raw")


def _adapter(model: str, kind: str) -> str:
    return f"{{work}}/adapters/{model}-{kind}"


def _family(model: str, small: bool, learnt: bool) -> dict[str, str]:
    """The strategies of every likelihood table, by title; the first is what the others are compared with.

    Args:
        model: a key of ``MODELS``.
        small: with grids of fewer values.
        learnt: the amateur induced on QA learnt the very texts that are scored, so its contrast would know the labels:
            leave it out, and let LOL have the other amateur.
    """
    weights = ",amateur_weight=0.5|1.0,fusion_weight=0.5" if small else ""
    lol = f"lol:amateur={_adapter(model, 'general' if learnt else 'qa')},lower_layers=0.5|0.75{weights}"
    induced = {} if learnt else {"against an amateur induced on QA": _adapter(model, "qa")}
    induced["against an amateur induced on general queries"] = _adapter(model, "general")
    return {
        "greedy": "greedy",
        "mask only": f"contrastive-decoding:alpha=0.1,beta=0.0,amateur={MISLEADING}",
        "DoLa": "dola",
        "against a misleading prompt": f"contrastive-decoding:amateur={MISLEADING}",
        **{title: f"contrastive-decoding:form=logits|log_probs,amateur={liar}" for title, liar in induced.items()},
        "context-aware, truthful instruction": f"context-aware:context={TRUTHFUL}",
        "LOL": lol,
        "LOL, refocused": f"{lol},guidance=default",
    }


def _strategies(texts: Iterable[str]) -> tuple[str, ...]:
    return tuple(argument for text in texts for argument in ("--strategy", text))


def _likelihood(
    model: str,
    columns: tuple[Column, ...],
    *command: str,
    small: bool = False,
    learnt: bool = False,
    groups: Sequence[Sequence[str]] = (),
) -> Part:
    """A part that tunes the strategies of a likelihood table, with a command for each group of titles."""
    family = _family(model, small, learnt)
    return Part(
        tuple(
            dataclasses.replace(
                _tabled(("tune", *command, "--model", MODELS[model]), family, titles),
                after=(f"adapters-{model}",) if any("{work}" in family[title] for title in titles) else (),
            )
            for titles in groups or [list(family)[1:]]
        ),
        columns,
    )


def _tabled(command: tuple[str, ...], strategies: Mapping[str, str], titles: Sequence[str], language: str = "") -> Step:
    """A command for the first of some strategies, by title, and those of these titles."""
    rows = (next(iter(strategies)), *titles)
    return Step((*command, *_strategies(strategies[title] for title in rows)), language, rows)


def _adapters(model: str) -> Part:
    return Part(
        tuple(
            Step(
                (
                    "induce", "--model", MODELS[model], "--data", f"{{data}}/{data}", "--batch-size", "32", *options,
                    "--output", _adapter(model, kind),
                )
            )
            for kind, (data, options) in ADAPTERS.items()
        )
    )  # fmt: skip


# Prefixes of the data (about 40 tokens of GPT-2), 200 new tokens: the paper's WebText setting with 100 of its prompts,
# which take an hour.
OPEN_ENDED = {
    "greedy": "greedy",
    "beam, 4": "beam",
    "contrastive search, k 5, α .6": "contrastive-search:top_k=5,penalty_alpha=0.6",
    "FSD": "fsd",
    "top-k, 50": "top-k",
    "nucleus, .95": "nucleus",
    "typical, .95": "typical",
}
TEXT_COLUMNS = (
    Column("diversity", "diversity"), Column("coherence", "coherence", digits=2), Column("MAUVE", "MAUVE"),
    Column("rep-2", "rep-2"), Column("rep-4", "rep-4"),
)  # fmt: skip


def _open_ended(model: str, judge: str, groups: Sequence[Sequence[str]] = ()) -> Part:
    command = (
        "eval", "multilingual", "--task", "open-ended", "--languages", "en", "--limit", "100", "--max-new-tokens",
        "200", "--batch-size", "50", "--data", "en={data}/open_ended/webtext_gpt2-large_greedy.jsonl",
        "--model", MODELS[model], "--coherence-model", MODELS[judge], "--mauve-model", "smollm2-135m",
    )  # fmt: skip
    return Part(
        tuple(_tabled(command, OPEN_ENDED, titles) for titles in groups or [list(OPEN_ENDED)[1:]]), TEXT_COLUMNS
    )


LANGUAGES = ("ar", "bn", "de", "en", "es", "fr", "hi", "id", "it", "ja", "ko", "nl", "pt", "ru", "th", "zh")
MULTILINGUAL = {
    "greedy": "greedy",
    "nucleus, .95": "nucleus",
    "typical, .95": "typical",
    "contrastive search, α .6": "contrastive-search",
}


def _multilingual() -> Part:
    command = ("eval", "multilingual", "--task", "open-ended", "--batch-size", "50", "--data", "{data}/open_ended/wit")
    models = ("--model", MODELS["gemma"], "--coherence-model", MODELS["smollm2"])
    others = list(MULTILINGUAL)[1:]
    return Part(
        tuple(_tabled((*command, "--languages", code, *models), MULTILINGUAL, others, code) for code in LANGUAGES),
        TEXT_COLUMNS[:2],
    )


def _translated() -> Part:
    """TruthfulQA in eight languages, 200 questions each, with the guidance in the language."""
    files = {code: f"hitz_{code}.json" for code in ("es", "ca", "eu", "gl")}
    files |= {code: f"okapi_{code}.json" for code in ("de", "fr", "ru", "zh")}
    liar = _adapter("gemma", "qa")
    strategies = {
        "greedy": "greedy",
        "DoLa, final norm": "dola:final_norm=true",
        "against an amateur induced on QA": f"contrastive-decoding:amateur={liar}",
        "LOL, refocused": f"lol:amateur={liar},lower_layers=0.75,guidance=default",
    }

    def step(code: str, file: str) -> Step:
        command = (
            "eval", "truthfulqa", "--data", f"{{data}}/truthfulqa_multilingual/{file}", "--languages", code,
            "--prompt", "none", "--limit", "200", "--model", MODELS["gemma"],
        )  # fmt: skip
        made = _tabled(command, strategies, list(strategies)[1:], code)
        return dataclasses.replace(made, after=("adapters-gemma",))

    return Part(tuple(step(code, file) for code, file in files.items()), MULTIPLE_CHOICE[:3])


def _isotropy() -> Part:
    """The paper's measure, on the continuations of the 16 languages' prompts."""
    files = ",".join(f"{code}={{data}}/open_ended/wit/{code}.jsonl" for code in LANGUAGES)
    models = [argument for name in MODELS.values() for argument in ("--model", name)]
    return Part((Step(("isotropy", "--paper", "--field", "reference_text", "--data", files, *models)),))


# What a model of a large vocabulary takes half an hour to an hour for, on one core.
LIKELIHOOD_GROUPS = (
    ("mask only", "against a misleading prompt", "context-aware, truthful instruction"),
    ("DoLa",),
    ("against an amateur induced on QA", "against an amateur induced on general queries"),
    ("LOL", "LOL, refocused"),
)
TEXT_GROUPS = (("beam, 4",), ("contrastive search, k 5, α .6", "FSD"), ("top-k, 50", "nucleus, .95", "typical, .95"))


TRUTHFULQA = ("truthfulqa", "--data", "{data}/truthfulqa/TruthfulQA.csv", "--validation", "100", "--prompt")
FACTOR = ("factor", "--data", "{data}/factor/news_factor.csv", "--validation", "100")
HALUEVAL = ("halueval", "--data", "{data}/halueval/qa_one-turn_data.json", "--validation", "100")

PARTS: dict[str, Part] = {
    "adapters-smollm2": _adapters("smollm2"),
    "adapters-gemma": _adapters("gemma"),
    "truthfulqa-smollm2": _likelihood("smollm2", MULTIPLE_CHOICE, *TRUTHFULQA, "dola"),
    "truthfulqa-smollm2-chat": _likelihood("smollm2", MULTIPLE_CHOICE, *TRUTHFULQA, "chat"),
    "truthfulqa-gemma": _likelihood(
        "gemma", MULTIPLE_CHOICE, *TRUTHFULQA, "dola", small=True, groups=LIKELIHOOD_GROUPS
    ),
    "factor-smollm2": _likelihood("smollm2", COMPLETION, *FACTOR, small=True),
    "factor-gemma": _likelihood("gemma", COMPLETION, *FACTOR, small=True, groups=LIKELIHOOD_GROUPS),
    "halueval-smollm2": _likelihood("smollm2", DISCRIMINATION, *HALUEVAL, small=True, learnt=True),
    "halueval-gemma": _likelihood("gemma", DISCRIMINATION, *HALUEVAL, small=True, learnt=True),
    "open-ended-smollm2": _open_ended("smollm2", "gemma"),
    "open-ended-gemma": _open_ended("gemma", "smollm2", TEXT_GROUPS),
    "multilingual": _multilingual(),
    "truthfulqa-translated": _translated(),
    "isotropy": _isotropy(),
}
