"""What drafts and lazy readers save: time per token against transformers' greedy search, and against no drafts.

    python benchmarks/drafts.py [--data DIR] [--models DIR] [--settings NAME,NAME] [--batches 1,4,8] [--threads 1,2]

Settings: context-aware decoding and greedy search with the context in the prompt, on articles of XSum and questions of
HaluEval (of --data), by prompt lookup; contrastive decoding and LOL on the embedded models, on stories3M (of --models)
and on SmolLM2 with a LoRA amateur (--adapter, or else one with random weights); contrastive search with an exit and
with an assistant. The settings "given" are of a model with random weights (--layers, --width) and drafts that are right
with a given probability: what a round costs, whoever drafts. What is not at hand is left out, with a line.

In one process the methods take turns on the same prompts: transformers' greedy search (of the prompt with its context,
where there is one), the strategy with every reader at every token (``lazy`` off), the strategy as it is, and the
strategy with each kind of drafts. All but the first must choose the same tokens, or the benchmark fails. Time per token
is that of decoding (the prompt and the first token left out), all rows' tokens counted; texts end where they end.
Ratios are medians over the repeats, turn by turn. Also in the file: tokens a round, drafts accepted, and the share of
readings that lazy readers left out. Sizes already in the file are replaced, others kept.
"""

from __future__ import annotations

import argparse
import functools
import json
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from real_models import cpu_name
from turns import llama, percentile_columns, percentiles, written

OTHER_TOKENS = [False]  # whether some method has chosen others than without drafts
GREEDY, EAGER, PLAIN = "greedy (transformers)", "every reader", "no drafts"
KEY = ["setting", "batch", "threads", "device"]
COLUMNS = [
    "setting", "method", "batch", "prompts", "new_tokens", *percentile_columns("ms_per_token"), "ratio_to_greedy",
    "ratio_to_no_drafts", "tokens_per_round", "drafts_accepted", "readings_left_out", "first_token_s", "same_tokens",
    "repeats", "threads", "device", "torch", "transformers", "python",
]  # fmt: skip


@dataclass(frozen=True)
class Text:
    """A prompt, and a context that is put before it."""

    prompt: str
    context: str = ""


@dataclass(frozen=True)
class Setting:
    """What is measured.

    Attributes:
        model: name or folder.
        texts: of the prompts.
        strategy: makes the strategy from model, tokenizer and texts; None is greedy search with the contexts.
        drafts: by title.
    """

    model: str
    texts: Callable[[argparse.Namespace], Sequence[Text]]
    strategy: Callable[[Any, Any, Sequence[Text], argparse.Namespace], Any]
    drafts: dict[str, Any] = field(default_factory=dict)


def articles(options: argparse.Namespace) -> list[Text]:
    """XSum's articles, each to be summarised."""
    texts = []
    for file in sorted((options.data / "summarization").glob("xsum_train_*.json")):
        for entry in json.loads(file.read_text(encoding="utf-8")):
            article = entry["context"].rpartition("\n\nArticle:\n")[2].partition("\n\nSummarization:")[0]
            texts.append(Text("\nThe article in a few sentences:", f"Article:\n{article[:1600]}\n"))
    return texts


def questions(options: argparse.Namespace) -> list[Text]:
    """HaluEval's questions, each with the knowledge that answers it."""
    lines = (options.data / "halueval" / "qa_one-turn_data.json").read_text(encoding="utf-8").splitlines()
    entries = [json.loads(line) for line in lines[: options.prompts * 4]]
    return [Text(f"Question: {entry['question']}\nAnswer:", f"{entry['knowledge']}\n") for entry in entries]


def openings(*texts: str) -> Callable[[argparse.Namespace], list[Text]]:
    """Given prompts."""
    return lambda options: [Text(text) for text in texts]


STORIES = openings(
    "Once upon a time there was a little", "One day Tom and Lily went to the", "The dog wanted to play with",
    "In a small house by the sea lived", "Mia had a red ball that she", "It was raining, so the children",
    "The old man said to the boy", "A big bear came out of the",
)  # fmt: skip
TOWN = openings(
    "The town lies", "The river rises in", "Question: Where is the old bridge?\nAnswer:", "The market is held",
    "In the north of the town", "The people of the valley", "Question: What do they make there?\nAnswer:", "In spring",
)  # fmt: skip
FACTS = openings(
    "The capital of France is", "Water boils at a temperature of", "The main causes of the First World War were",
    "To make bread at home you need", "Photosynthesis is the process by which", "The human heart has",
    "In computer science, a stack is", "The Great Wall of China was built",
)  # fmt: skip


def context_aware(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
    """Context-aware decoding, a context a row."""
    import decoding

    return decoding.ContextAware([text.context for text in texts], tokenizer=tokenizer)


def against(amateur: str) -> Callable[..., Any]:
    """Contrastive decoding against an amateur."""

    def make(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
        import decoding

        return decoding.ContrastiveDecoding(amateur_of(amateur, model, options), tokenizer=tokenizer)

    return make


def lol(amateur: str, lower_layers: Sequence[float]) -> Callable[..., Any]:
    """LOL with guidance, its readers fused."""

    def make(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
        import decoding

        return decoding.LOL(amateur_of(amateur, model, options), lower_layers, guidance="default", tokenizer=tokenizer)

    return make


def search(model: Any, tokenizer: Any, texts: Sequence[Text], options: argparse.Namespace) -> Any:
    """Contrastive search."""
    import decoding

    return decoding.ContrastiveSearch()


def no_strategy(*given: Any) -> None:
    """Greedy search."""


def amateur_of(amateur: str, model: Any, options: argparse.Namespace) -> Any:
    """An amateur by name; "lora" is the adapter of the command line, or one with random weights."""
    if amateur != "lora":
        return str(options.models / amateur) if (options.models / amateur).is_dir() else amateur
    if options.adapter is not None:
        return str(options.adapter)
    import peft
    import torch

    if "amateur" not in getattr(model, "peft_config", {}):
        torch.manual_seed(0)
        config = peft.LoraConfig(r=8, target_modules=["q_proj", "k_proj", "v_proj", "o_proj"], init_lora_weights=False)
        peft.inject_adapter_in_model(config, model, adapter_name="amateur")
        model.peft_config = {"amateur": config}
        model.float()
    return "amateur"


RANDOM, GIVEN_CONTEXT = "random", 1024
GIVEN = {"right with 60%": "given:0.6", "right with 90%": "given:0.9"}
LOOKUP = {"prompt lookup": "prompt-lookup"}
SMOLLM, THIRDS = "smollm2-135m", (0.25, 0.5, 0.75)
SETTINGS = {
    "greedy with an article": Setting(SMOLLM, articles, no_strategy, LOOKUP),
    "context-aware, articles": Setting(SMOLLM, articles, context_aware, LOOKUP),
    "greedy with knowledge": Setting(SMOLLM, questions, no_strategy, LOOKUP),
    "context-aware, questions": Setting(SMOLLM, questions, context_aware, LOOKUP),
    "contrastive decoding, SmolLM2 and LoRA": Setting(SMOLLM, FACTS, against("lora"), LOOKUP),
    "LOL, SmolLM2 and LoRA": Setting(SMOLLM, FACTS, lol("lora", THIRDS), LOOKUP),
    "contrastive search, SmolLM2": Setting(SMOLLM, FACTS, search, {**LOOKUP, "exit 20": "exit:20"}),
    "contrastive decoding, embedded": Setting("expert", TOWN, against("amateur"), {**LOOKUP, "amateur": "amateur"}),
    "LOL, embedded": Setting("expert", TOWN, lol("induced", THIRDS), {**LOOKUP, "assistant": "model:amateur"}),
    "contrastive search, embedded": Setting("expert", TOWN, search, {"exit 2": "exit:2", "assistant": "model:amateur"}),
    "contrastive decoding, stories3M": Setting(
        "stories3M", STORIES, against("stories3M-amateur"), {**LOOKUP, "amateur": "amateur"}
    ),
    "LOL, stories3M": Setting(
        "stories3M", STORIES, lol("stories3M-amateur", THIRDS), {**LOOKUP, "amateur": "amateur"}
    ),
    "contrastive search, stories3M": Setting(
        "stories3M", STORIES, search, {**LOOKUP, "exit 4": "exit:4", "assistant": "model:stories3M-amateur"}
    ),
    "greedy, given": Setting(RANDOM, openings(*[""] * 8), no_strategy, GIVEN),
    "contrastive search, given": Setting(RANDOM, openings(*[""] * 8), search, GIVEN),
}  # fmt: skip


def main() -> int:
    """Run the benchmark; 1 where a size had to be left out."""
    options = parse()
    import torch

    left_out = 0
    for threads in options.threads:
        torch.set_num_threads(threads)
        for name in options.settings:
            if reason := why_not(SETTINGS[name], options):
                print(f"{name}: left out, {reason}")
                continue
            one = functools.partial(compare, name, options=options)
            left_out |= written(one, [(batch, 0) for batch in options.batches], COLUMNS, options.output, keep=KEY)
    return left_out or int(OTHER_TOKENS[0])


def parse() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"), help="folder of the data sets")
    parser.add_argument("--models", type=Path, default=Path("../shared/models"), help="folder of small models")
    parser.add_argument("--adapter", type=Path, help="folder of the LoRA amateur of SmolLM2")
    parser.add_argument("--settings", type=lambda text: text.split(";"), default=list(SETTINGS), help="between ;")
    parser.add_argument("--batches", type=lambda text: [int(number) for number in text.split(",")], default=[1, 4, 8])
    parser.add_argument("--threads", type=lambda text: [int(number) for number in text.split(",")], default=[2])
    parser.add_argument("--prompts", type=int, default=8, help="texts of a setting; batches take the first")
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument(
        "--draft-tokens",
        type=lambda text: int(text) if text.isdecimal() else text,
        default="auto",
        help="drafts of a round, or auto",
    )
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--layers", type=int, default=8, help="of the model with random weights")
    parser.add_argument("--width", type=int, default=512, help="likewise")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "results" / "drafts.csv")
    options = parser.parse_args()
    for name in options.settings:
        if name not in SETTINGS:
            parser.error(f"--settings {name}: expected some of {'; '.join(SETTINGS)}")
    return options


def why_not(setting: Setting, options: argparse.Namespace) -> str:
    """Why a setting cannot be measured here; empty where it can."""
    from decoding.models.releases import RELEASES, is_fetched

    if setting.model in RELEASES and not is_fetched(setting.model):
        return f"{setting.model} was not fetched (decoding fetch {setting.model})"
    if setting.model.startswith("stories") and not (options.models / setting.model).is_dir():
        return f"{options.models / setting.model} is missing"
    if setting.texts in (articles, questions) and not options.data.is_dir():
        return f"{options.data} is missing"
    return ""


@functools.lru_cache(maxsize=1)
def random_model(layers: int, width: int, device: str) -> tuple[Any, Any]:
    """A Llama with random weights, and no tokenizer."""
    return llama(layers, width, max(1, width // 256), device, "float32"), None


@functools.lru_cache(maxsize=1)
def loaded(name: str, device: str) -> tuple[Any, Any]:
    """A model and its tokenizer; one is kept."""
    import decoding

    model, tokenizer = decoding.load(name, device=device, dtype="float32")
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    return model, tokenizer


@functools.cache
def assistant(name: str) -> Any:
    """A model that drafts."""
    import decoding

    return decoding.load(name, dtype="float32")[0]


def compare(name: str, batch: int, _: int, options: argparse.Namespace) -> list[dict[str, Any]]:
    """All methods of a setting with batches of one size, taking turns."""
    import platform

    import torch
    import transformers

    setting = SETTINGS[name]
    in_models = options.models / setting.model
    if setting.model == RANDOM:
        model, tokenizer = random_model(options.layers, options.width, options.device)
    else:
        model, tokenizer = loaded(str(in_models) if in_models.is_dir() else setting.model, options.device)
    texts = list(setting.texts(options))[: options.prompts]
    batches = [texts[first : first + batch] for first in range(0, len(texts) - batch + 1, batch)]
    methods = {GREEDY: None, EAGER: None, PLAIN: None, **setting.drafts}
    if setting.strategy in (no_strategy, search):
        del methods[EAGER]
    runs: dict[str, list[Run]] = {method: [] for method in methods}
    for repeat in range(-1, options.repeats):
        for method in methods:
            found = run_all(setting, method, methods[method], batches, model, tokenizer, options)
            if repeat >= 0:
                runs[method].append(found)
    expected = runs[PLAIN][0].tokens
    right = {method: all(result.tokens == expected for result in results) for method, results in runs.items()}
    OTHER_TOKENS[0] |= not all(right[method] for method in methods if method != GREEDY)
    print(f"\n{name}, batch {batch}, {torch.get_num_threads()} threads, {len(texts)} prompts")
    print(f"{'':24}{'ms/token':>10}{'x greedy':>10}{'x plain':>10}{'a round':>10}{'accepted':>10}{'left out':>10}")
    rows = []
    for method, results in runs.items():
        times = [result.ms_per_token for result in results]
        to_greedy, to_plain = ratio(results, runs[GREEDY]), ratio(results, runs[PLAIN])
        last = results[-1]
        print(
            f"{method:24}{statistics.median(times):10.2f}{to_greedy:10.2f}{to_plain:10.2f}{last.per_round:10.2f}"
            f"{last.accepted:10.2f}{last.left_out:10.2f}"
            f"{'' if method == GREEDY or right[method] else '  OTHER TOKENS'}"
        )
        rows.append(
            {
                "setting": name, "method": method, "batch": batch, "prompts": len(texts),
                "new_tokens": options.new_tokens, **percentiles("ms_per_token", times),
                "ratio_to_greedy": f"{to_greedy:.3f}", "ratio_to_no_drafts": f"{to_plain:.3f}",
                "tokens_per_round": f"{last.per_round:.2f}", "drafts_accepted": f"{last.accepted:.3f}",
                "readings_left_out": f"{last.left_out:.3f}",
                "first_token_s": f"{statistics.median(result.first_s for result in results):.3f}",
                "same_tokens": method == GREEDY or right[method],
                "repeats": options.repeats, "threads": torch.get_num_threads(),
                "device": torch.cuda.get_device_name() if options.device.startswith("cuda") else cpu_name(),
                "torch": torch.__version__, "transformers": transformers.__version__,
                "python": platform.python_version(),
            }
        )  # fmt: skip
    return rows


@dataclass
class Run:
    """What one method did on all prompts.

    Attributes:
        seconds: of decoding.
        count: tokens chosen in it, of all rows.
        first_s: seconds to the first tokens.
        tokens: of every batch.
    """

    seconds: float = 0.0
    count: int = 0
    first_s: float = 0.0
    tokens: list[Any] = field(default_factory=list)
    rounds: int = 0
    in_rounds: int = 0
    drafted: int = 0
    kept: int = 0
    readings: int = 0
    read: int = 0

    @property
    def ms_per_token(self) -> float:
        return 1000 * self.seconds / max(self.count, 1)

    @property
    def per_round(self) -> float:
        """Tokens of a row in a round."""
        return self.in_rounds / self.rounds if self.rounds else 1.0

    @property
    def accepted(self) -> float:
        """The share of drafts that were accepted."""
        return self.kept / self.drafted if self.drafted else 0.0

    @property
    def left_out(self) -> float:
        """The share of readings of a token by a group of readers that were not made, or made with others later."""
        return 1 - self.read / self.readings if self.readings else 0.0


def run_all(
    setting: Setting, method: str, drafts: Any, batches: Sequence[Sequence[Text]], model: Any, tokenizer: Any,
    options: argparse.Namespace,
) -> Run:  # fmt: skip
    """Decode every batch by one method."""
    import decoding

    found = Run()
    for texts in batches:
        strategy = setting.strategy(model, tokenizer, texts, options)
        within = strategy is None or method == GREEDY or setting.strategy is not context_aware
        prompts = [(text.context if within else "") + text.prompt for text in texts]
        inputs = encoded(prompts, tokenizer, model)
        clock = Clock()
        common = {
            **inputs, "max_new_tokens": options.new_tokens, "do_sample": False, "stopping_criteria": [clock],
        }  # fmt: skip
        with counted(found, lazy=method != EAGER), ExitStack() as patched:
            began = time.perf_counter()
            if method == GREEDY:
                ids = model.generate(**common)
            elif drafts is None:
                ids = decoding.generate(model, strategy=strategy, **common)
            else:
                own = drafts
                if drafts.startswith("given:"):
                    expected = decoding.generate(model, strategy=strategy, **{**common, "stopping_criteria": None})
                    patched.enter_context(given_drafts(expected.tolist(), float(drafts.removeprefix("given:"))))
                    clock.first, began = 0.0, time.perf_counter()
                    own = "prompt-lookup"
                elif drafts.startswith("model:"):
                    own = assistant(amateur_of(drafts.removeprefix("model:"), None, options))
                ids = decoding.generate(
                    model, strategy=strategy, drafts=own, draft_tokens=options.draft_tokens, **common
                )
        new = ids[:, inputs["input_ids"].shape[1] :]
        ends = {model.generation_config.pad_token_id, getattr(tokenizer, "eos_token_id", None)} - {None}
        ended = sum(int((new == end).sum()) for end in ends) if tokenizer is not None else 0
        found.count += new.numel() - ended - len(texts)
        found.seconds += clock.last - clock.first
        found.first_s += clock.first - began
        found.tokens.append(ids.tolist())
    return found


class Clock:
    """A stopping criterion that notes when the first token was chosen, and the last."""

    def __init__(self) -> None:
        self.first = self.last = 0.0

    def __call__(self, input_ids: Any, scores: Any, **kwargs: Any) -> Any:
        import torch

        if input_ids.is_cuda:
            torch.cuda.synchronize()
        self.last = time.perf_counter()
        self.first = self.first or self.last
        return torch.zeros(len(input_ids), dtype=torch.bool, device=input_ids.device)


@contextmanager
def counted(run: Run, lazy: bool) -> Iterator[None]:
    """Count rounds and readings, with lazy readers or without them."""
    from unittest.mock import patch

    from decoding.drafts.length import DraftLength
    from decoding.strategies.contrast.base import ContrastStrategy
    from decoding.strategies.contrast.drafted_readers import DraftedReaders, _DraftedGroup
    from decoding.strategies.contrast.fused_streams import FusedStreams
    from decoding.strategies.contrast.reader_group import ReaderGroup

    def end(self: Any, drafted: Sequence[int], accepted: Sequence[int]) -> None:
        run.rounds += len(drafted)
        run.in_rounds += sum(accepted) + len(accepted)
        run.drafted += sum(drafted)
        run.kept += sum(accepted)
        ends(self, drafted, accepted)

    def step(self: Any, *given: Any) -> Any:
        run.readings += len(self.groups)
        return steps(self, *given)

    def read(self: Any, tokens: Any) -> Any:
        run.read += 1
        return reads(self, tokens)

    def drafted_step(self: Any, *given: Any) -> Any:
        run.readings += len(self._groups)
        return drafted_steps(self, *given)

    def drafted_read(self: Any, *given: Any) -> Any:
        run.read += 1
        return drafted_reads(self, *given)

    ends, steps, reads = DraftLength.end, FusedStreams.extend, ReaderGroup.extend
    drafted_steps, drafted_reads = DraftedReaders.read, _DraftedGroup.read
    with (
        patch.object(DraftLength, "end", end), patch.object(FusedStreams, "extend", step),
        patch.object(ReaderGroup, "extend", read), patch.object(DraftedReaders, "read", drafted_step),
        patch.object(_DraftedGroup, "read", drafted_read), patch.object(ContrastStrategy, "lazy", lazy),
    ):  # fmt: skip
        yield


@contextmanager
def given_drafts(texts: list[list[int]], share: float) -> Iterator[None]:
    """Drafts from texts that are known, each token right with this probability."""
    from unittest.mock import patch

    import torch

    from decoding.drafts.proposer import Drafts, Proposer, drafts_of
    from decoding.generation import strategy

    draws = random.Random(0)

    class Given(Proposer):
        """Proposes what the texts have, some tokens of it replaced."""

        def propose(self, so_far: Sequence[Sequence[int]], most: Sequence[int]) -> Drafts:
            rows = [
                [token if draws.random() < share else (token + 1) % 1000 for token in text[len(now) : len(now) + n]]
                for text, now, n in zip(texts, so_far, most, strict=True)
            ]
            return drafts_of(rows, self.device)

    given = Given()
    given.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with patch.object(strategy, "open_proposer", lambda *args, **kwargs: given):
        yield


def encoded(prompts: Sequence[str], tokenizer: Any, model: Any) -> dict[str, Any]:
    """Token ids and mask of prompts; random ids of as many where there is no tokenizer."""
    import torch

    if tokenizer is not None:
        return dict(tokenizer(list(prompts), return_tensors="pt", padding=True).to(model.device))
    draws = torch.Generator().manual_seed(1)
    ids = torch.randint(100, 30000, (len(prompts), GIVEN_CONTEXT), generator=draws).to(model.device)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


def ratio(results: Sequence[Run], others: Sequence[Run]) -> float:
    """The median over the repeats of time per token against that of the same turn."""
    return statistics.median(one.ms_per_token / other.ms_per_token for one, other in zip(results, others, strict=True))


if __name__ == "__main__":
    sys.exit(main())
