"""``decoding compare``: strategies on the same prompts, with figures of repetition and time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from statistics import median
from typing import Any

from rich.console import Console
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from decoding.cli.output import progress
from decoding.evals.compare.explanations import as_markdown, as_table
from decoding.evals.metrics import diversity, repetition
from decoding.explanation.explain import explain_continuation
from decoding.explanation.explorer import ExploredTexts, UnexplainedText, explorer_page
from decoding.explanation.raw_exits import note_on_raw_exits
from decoding.explanation.records import Explanation
from decoding.models.devices import is_main_process
from decoding.strategies.effective_config import decoded_with, effective_config, options_of_folder, warn_of_folder
from decoding.strategies.generation_options import NO_OPTIONS, check_apply, checked_options
from decoding.strategies.registry import NOT_EXPLAINED, StrategySpec
from decoding.text import Continuation, check_prompts, continuations
from decoding.versions import versions

__all__ = ["Comparison", "Figures", "compare", "repeated_words", "show_figures", "show_texts"]

REPORTED = ("continuation", "new_tokens", "seconds")  # of each continuation, in compare.json
LEAD = (
    "Point at a token, or move with the arrow keys: what the model found probable there, what the strategy made of it, "
    "and what was rejected. A click pins the token."
)
LEAD_OF_TEXTS = (
    "Beam search chooses among whole texts, so there is no choice of each token to tell of. A strategy that chooses "
    "token after token, such as greedy search, tells it."
)
WARM_UP_TOKENS = 8  # enough to find out how the model branches and to start the thread pool


@dataclass(frozen=True)
class Figures:
    """Figures of a strategy on all prompts together.

    Attributes:
        rep_2: percent of repeated word pairs (:func:`decoding.evals.metrics.repetition`).
        rep_3: percent of repeated phrases of three words.
        rep_4: percent of repeated phrases of four words.
        diversity: percent (:func:`decoding.evals.metrics.diversity`).
        mean_new_tokens: length of a continuation.
        ms_per_token: wall time over new tokens after a warm-up, prefill included; median over the prompts.
    """

    rep_2: float
    rep_3: float
    rep_4: float
    diversity: float
    mean_new_tokens: float
    ms_per_token: float


@dataclass(frozen=True)
class Comparison:
    """Strategies side by side: ``continuations[s][p]`` is that of ``prompts[p]`` by ``specs[s]``.

    ``explanations`` are by (s, p), where the user wants them, for strategies that choose token after token.
    ``generation_configs`` has what each strategy decoded with, ``options`` what of it was asked for beside the
    strategies, and ``folder_generation_config`` what the model's own has and is off. ``chat`` tells that prompts stand
    in a chat template.
    """

    model: str
    seed: int
    prompts: list[str]
    specs: list[StrategySpec]
    continuations: list[list[Continuation]]
    figures: list[Figures]
    explanations: dict[tuple[int, int], Explanation] = field(default_factory=dict)
    generation_configs: list[dict[str, Any]] = field(default_factory=list)
    folder_generation_config: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)
    chat: bool = False

    def as_dict(self) -> dict[str, Any]:
        """The comparison as in ``compare.json``."""
        strategies = [
            {
                "strategy": spec.name,
                "parameters": spec.recorded,
                "label": spec.label,
                "generation_config": config,
                "figures": asdict(figures),
                "continuations": [
                    {name: value for name, value in asdict(text).items() if name in REPORTED}
                    | ({"explanation": self.explanations[s, p].as_dict()} if (s, p) in self.explanations else {})
                    for p, text in enumerate(texts)
                ],
            }
            for s, (spec, texts, figures, config) in enumerate(
                zip(self.specs, self.continuations, self.figures, self.generation_configs, strict=True)
            )
        ]
        return {
            "model": self.model,
            "seed": self.seed,
            "folder_generation_config": self.folder_generation_config,
            "versions": versions(),
            "prompts": self.prompts,
            "strategies": strategies,
        }

    def as_markdown(self) -> str:
        """The comparison as in ``compare.md``: the figures, then the texts under their prompts."""
        lines = [f"# {self.model}: {len(self.prompts)} prompts, seed {self.seed}", ""]
        if self.options:
            given = ", ".join(f"`{name}={value}`" for name, value in self.options.items())
            lines += [f"All strategies with {given}.", ""]
        header = ["strategy", *COLUMNS]
        lines += [f"| {' | '.join(header)} |", f"|---{'|---:' * len(COLUMNS)}|"]
        for spec, figures in zip(self.specs, self.figures, strict=True):
            lines.append(f"| {spec.label} | {' | '.join(_cells(figures))} |")
        for index, prompt in enumerate(self.prompts):
            lines += ["", f"## {' '.join(prompt.split())}"]
            for s, (spec, texts) in enumerate(zip(self.specs, self.continuations, strict=True)):
                quoted = "\n".join(f"> {line}" for line in texts[index].continuation.strip().splitlines())
                lines += ["", f"**{spec.label}**", "", quoted or "> (nothing)"]
                if (s, index) in self.explanations:
                    lines += ["", *as_markdown(self.explanations[s, index], self.note(s, index))]
        return "\n".join(lines) + "\n"

    def note(self, s: int, p: int) -> str:
        """What is to be said of one text's explanation; "" for nothing, or without one."""
        explanation = self.explanations.get((s, p))
        return "" if explanation is None else note_on_raw_exits(self.specs[s], explanation)

    def as_html(self) -> str:
        """The texts side by side in a page that tells why each token was chosen, where there are explanations."""
        return _as_page(self)


def _as_page(result: Comparison) -> str:
    groups = [
        ExploredTexts(
            prompt,
            [
                result.explanations.get((s, p)) or UnexplainedText(spec.label, texts[p].text)
                for s, (spec, texts) in enumerate(zip(result.specs, result.continuations, strict=True))
            ],
            [result.note(s, p) for s in range(len(result.specs))],
            folds_prompts=result.chat,
        )
        for p, prompt in enumerate(result.prompts)
    ]
    if not result.explanations:
        return explorer_page(f"{result.model}: texts", groups, LEAD_OF_TEXTS)
    return explorer_page(f"{result.model}: why each token", groups, LEAD)


def compare(
    name: str,
    model: Any,
    tokenizer: Any,
    specs: Sequence[StrategySpec],
    prompts: Sequence[str],
    *,
    max_new_tokens: int | None = None,
    seed: int = 0,
    explain: bool = False,
    chat: bool = False,
    generation_config: Mapping[str, Any] = NO_OPTIONS,
    places: Sequence[str] | None = None,
) -> Comparison:
    """Continue every prompt with every strategy, one prompt at a time, each from the same seed.

    Strategies are what they are called: penalties, samplers and the like of the model's own generation config are off.

    Args:
        name: of the model, as the user gave it.
        model: a generating transformers model.
        tokenizer: its tokenizer.
        specs: the strategies.
        prompts: texts to continue.
        max_new_tokens: None is 100, or as many as the context has left.
        seed: of the random draws.
        explain: read the texts again for :attr:`Comparison.explanations`, after all times are taken.
        chat: put each prompt into the tokenizer's chat template as the user's message.
        generation_config: options of transformers' ``GenerationConfig`` beside the strategies, such as
            ``{"repetition_penalty": 1.2}``.
        places: of the prompts, as messages name them; by default "prompt 1" and so on, where there are several.

    Raises:
        InputError: a prompt that the model cannot read; found before anything is generated.
        OptionError: parameters that do not fit the model, options that are unknown, out of range, or a strategy's
            own, or more new tokens than a prompt leaves in the context; found before as well.

    Warns:
        DecodingWarning: the model's own generation config has penalties that are off.
    """
    options = checked_options(generation_config)
    check_apply(options, specs)
    warn_of_folder(model, options)
    with decoded_with(model, options):
        compared = _compare(name, model, tokenizer, specs, prompts, max_new_tokens, seed, explain, chat, places)
    return replace(
        compared,
        generation_configs=[effective_config(spec, model, options) for spec in specs],
        folder_generation_config=options_of_folder(model),
        options=options,
        chat=chat,
    )


def _compare(
    name: str,
    model: Any,
    tokenizer: Any,
    specs: Sequence[StrategySpec],
    prompts: Sequence[str],
    max_new_tokens: int | None,
    seed: int,
    explain: bool,
    chat: bool,
    places: Sequence[str] | None,
) -> Comparison:
    specs = [spec.with_tokenizer(tokenizer) for spec in specs]
    for spec in specs:
        spec.check(model)
    check_prompts(model, tokenizer, prompts, places=places, max_new_tokens=max_new_tokens, chat=chat)
    warm_up = min(WARM_UP_TOKENS, max_new_tokens or WARM_UP_TOKENS)
    for spec in specs:
        continuations(model, tokenizer, spec, prompts[0], max_new_tokens=warm_up, chat=chat)
    by_strategy: list[list[Continuation]] = [[] for _ in specs]
    with progress(shown=is_main_process(model)) as bar:
        explained = [s for s, spec in enumerate(specs) if explain and spec.name not in NOT_EXPLAINED]
        task = bar.add_task("comparing", total=(len(specs) + len(explained)) * len(prompts))
        # Strategies take turns on each prompt, so that a busy spell of the machine slows them all.
        for prompt in prompts:
            for spec, texts in zip(specs, by_strategy, strict=True):
                texts += continuations(
                    model, tokenizer, spec, prompt, max_new_tokens=max_new_tokens, seed=seed, chat=chat
                )
                bar.advance(task)
        explanations = {}
        for s in explained:
            for p, text in enumerate(by_strategy[s]):
                explanations[s, p] = explain_continuation(
                    model, tokenizer, specs[s], text, max_new_tokens=max_new_tokens, chat=chat
                )
                bar.advance(task)
    figures = [_figures(texts) for texts in by_strategy]
    return Comparison(name, seed, list(prompts), list(specs), by_strategy, figures, explanations)


# --- showing ---------------------------------------------------------------------------------------------------------

COLUMNS = ("rep-2 %", "rep-3 %", "rep-4 %", "diversity %", "tokens", "ms/token")
MARKED_WORDS = 4  # a run of so many words that occurred before is marked as repeated


def show_texts(out: Console, result: Comparison) -> None:
    """Print each prompt with its continuations; on a terminal, repeated words are dim and underlined."""
    for index, prompt in enumerate(result.prompts):
        out.rule(f"prompt {index + 1}", align="left", characters="─")
        out.print(Text(prompt, style="bold"))
        for s, (spec, texts) in enumerate(zip(result.specs, result.continuations, strict=True)):
            out.print()
            out.print(Text(spec.label, style="bold cyan"))
            continuation = texts[index].continuation.strip()
            text = _marked(continuation) if continuation else Text("(no text)", style="dim")
            out.print(Padding(text, (0, 0, 0, 2)))
            if (s, index) in result.explanations:
                table = as_table(result.explanations[s, index], result.note(s, index))
                out.print(Padding(table, (1, 0, 0, 2)))
        out.print()


def show_figures(out: Console, result: Comparison) -> None:
    """Print the table of figures, one row a strategy."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    table.add_column("\nstrategy")
    for column in COLUMNS:
        table.add_column(column.replace(" ", "\n"), justify="right", no_wrap=True)
    for spec, figures in zip(result.specs, result.figures, strict=True):
        inside = spec.label.removeprefix(spec.name).strip("()")
        name = Text(spec.name).append(f"\n{inside}" if inside else "", style="dim")
        table.add_row(name, *_cells(figures))
    out.print(table)


def repeated_words(words: Sequence[str], n: int = MARKED_WORDS) -> list[bool]:
    """True for each word in a run of n words that occurred earlier in the text."""
    seen: set[tuple[str, ...]] = set()
    repeated = [False] * len(words)
    for start in range(len(words) - n + 1):
        gram = tuple(words[start : start + n])
        if gram in seen:
            repeated[start : start + n] = [True] * n
        seen.add(gram)
    return repeated


def _marked(text: str) -> Text:
    words = text.split()
    marked = Text()
    for word, again in zip(words, repeated_words(words), strict=True):
        marked.append(word, style="dim underline" if again else "")
        marked.append(" ")
    marked.rstrip()
    return marked


def _cells(figures: Figures) -> list[str]:
    shares = (figures.rep_2, figures.rep_3, figures.rep_4, figures.diversity)
    return [
        *(f"{share:.2f}" for share in shares),
        f"{figures.mean_new_tokens:.0f}",
        f"{figures.ms_per_token:.2f}",
    ]


def _figures(results: Sequence[Continuation]) -> Figures:
    texts = [result.continuation for result in results]
    tokens = sum(result.new_tokens for result in results)
    rep_2, rep_3, rep_4 = (repetition(texts, n) for n in (2, 3, 4))
    milliseconds = median(1000 * result.seconds / result.new_tokens for result in results)
    return Figures(rep_2, rep_3, rep_4, diversity(texts), tokens / len(results), milliseconds)
