"""The four generation tasks, as the runner evaluates them: prompts, what is kept of each text, and its figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from decoding.errors import OptionError
from decoding.evals.configurations import Configuration, digest
from decoding.evals.metrics.likelihood import coherence
from decoding.evals.metrics.overlap import rouge
from decoding.evals.metrics.passing import pass_at_k
from decoding.evals.metrics.repetition import counted, pooled
from decoding.evals.metrics.units import Units, splitter
from decoding.evals.multilingual.data import Passage, Problem
from decoding.evals.multilingual.languages import Language
from decoding.evals.multilingual.writing import Writer, Written
from decoding.evals.runner import Document, Record, Task
from decoding.evals.sandbox import Limits, run_program

__all__ = ["TASKS", "Code", "GenerationTask", "OpenEnded", "Summarization", "Translation"]

# Names of the tasks and the figures that their tables show, the one that is plotted first.
TASKS: dict[str, tuple[str, ...]] = {
    "open-ended": ("diversity", "rep-2", "rep-3", "rep-4", "tokens"),
    "translation": ("BLEU", "sentence chrF", "tokens"),
    "summarization": ("rougeL", "rouge1", "rouge2", "tokens"),
    "code": ("pass@1", "tokens"),
}


class GenerationTask(Task):
    """Texts generated from prompts.

    Args:
        name: as files have it.
        writer: the model, how long its texts may be and where they stop.
        settings: JSON-able; the documents' digest and the writer's settings are added.
        skipped: why rows were left out.
        batch_size: prompts read together where nothing is drawn.
    """

    corpus_resamples = 1000

    def __init__(
        self,
        name: str,
        writer: Writer,
        contents: Sequence[Any],
        settings: Mapping[str, Any],
        skipped: Sequence[str] = (),
        batch_size: int = 8,
    ) -> None:
        self.name, self.writer, self.contents, self.model = name, writer, contents, writer.model
        self.skipped, self.group_size = skipped, batch_size
        self.settings = {
            "task": name,
            "documents": digest([vars(each) for each in contents]),
            "max_new_tokens": writer.max_new_tokens,
            "stop": list(writer.stop),
            **settings,
        }

    @abstractmethod
    def prompt(self, content: Any) -> str:
        """What the model continues."""

    @abstractmethod
    def record(self, content: Any, written: Written) -> Record:
        """``metrics`` of a text, and what else is kept of it."""

    def documents(self) -> Sequence[Document]:
        """Numbered in the order of the file."""
        return [Document(f"{index:05}", content) for index, content in enumerate(self.contents)]

    def evaluate(self, document: Document, configurations: Sequence[Configuration]) -> Sequence[Record]:
        """See :class:`decoding.evals.runner.Task`."""
        return self.evaluate_group([document], configurations)[0]

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """See :class:`decoding.evals.runner.Task`."""
        prompts = [self.prompt(each.content) for each in documents]
        records: list[list[Record]] = [[] for _ in documents]
        for configuration in configurations:
            seeds = [configuration.seed(each.id) for each in documents]
            made = self.writer.write(configuration.choice, prompts, seeds)
            for document, written, row in zip(documents, made, records, strict=True):
                row.append({"strategy": configuration.label, **self.record(document.content, written)})
        return records


class OpenEnded(GenerationTask):
    """Continuing the beginning of a text.

    Args:
        prefix_length: read so many tokens of each text, prefix and reference together, and no more; None reads the
            data's prefixes.
        units: what repetition counts.
        judge: model and tokenizer that say how coherent the texts are.
    """

    def __init__(
        self,
        *arguments: Any,
        prefix_length: int | None = None,
        units: Units = "whitespace",
        judge: tuple[Any, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self.prefix_length, self.split, self.judge = prefix_length, splitter(units), judge

    def _parts(self, passage: Passage) -> tuple[str, str]:
        """What is read, and how people went on."""
        if self.prefix_length is None:
            return passage.text, passage.reference
        whole = passage.text + passage.reference
        read = self.writer.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        # Where a character is several tokens, the last one is read whole.
        end = read["offset_mapping"][: self.prefix_length][-1][1]
        return whole[:end], whole[end:]

    def prompt(self, content: Passage) -> str:
        """The prefix."""
        return self._parts(content)[0]

    def record(self, content: Passage, written: Written) -> Record:
        """Counts of n-grams, which are pooled over the documents, and the mean log-probability under the judge."""
        prefix, reference = self._parts(content)
        words = self.split(written.text)
        record: Record = {
            "prefix": prefix,
            "text": written.text,
            "reference": reference,
            "ngrams": [counted(words, n) for n in (2, 3, 4)],
            "metrics": {"tokens": written.tokens},
        }
        if self.judge is not None:
            record["coherence"] = coherence([prefix], [written.text], *self.judge).texts[0]
        return record

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """rep-n and diversity as the papers have them; coherence over the texts that are not empty (0 if all are)."""
        shares = [pooled([each["ngrams"][n] for each in records]) for n in range(3)]
        diversity = 100.0
        for share in shares:
            diversity *= 1 - share / 100
        figures = {"diversity": diversity, "rep-2": shares[0], "rep-3": shares[1], "rep-4": shares[2]}
        if self.judge is not None:
            found = [each["coherence"] for each in records if each["coherence"] is not None]
            figures["coherence"] = sum(found) / len(found) if found else 0.0
        return figures


class _Shown(GenerationTask):
    """A task whose prompt begins with examples."""

    def __init__(self, *arguments: Any, examples: Sequence[Passage], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.examples = examples
        self.settings = {**self.settings, "examples": digest([vars(each) for each in examples])}


class Translation(_Shown):
    """Translating a sentence, after examples.

    Args:
        languages: from which to which.
    """

    def __init__(self, *arguments: Any, languages: tuple[Language, Language], **more: Any) -> None:
        from sacrebleu.metrics import BLEU, CHRF

        super().__init__(*arguments, **more)
        self.languages = languages
        self.bleu = BLEU(tokenize=languages[1].bleu, effective_order=True)  # of a sentence; its counts are summed
        self.chrf = CHRF()

    def prompt(self, content: Passage) -> str:
        """Pairs under the languages' names, and the sentence."""
        given, wanted = (each.name for each in self.languages)
        shown = [f"{given}: {each.text}\n{wanted}: {each.reference}\n\n" for each in self.examples]
        return f"{''.join(shown)}{given}: {content.text}\n{wanted}:"

    def record(self, content: Passage, written: Written) -> Record:
        """ChrF of the sentence, and the counts that BLEU adds up."""
        text = written.text.strip()
        score = self.bleu.sentence_score(text, [content.reference])
        chrf = self.chrf.sentence_score(text, [content.reference])
        return {
            "prefix": content.text,
            "text": text,
            "reference": content.reference,
            "bleu": [*score.counts, *score.totals, score.sys_len, score.ref_len],
            "metrics": {"sentence chrF": chrf.score, "tokens": written.tokens},
        }

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """BLEU of all sentences together, as sacrebleu computes it."""
        sums = [sum(column) for column in zip(*(each["bleu"] for each in records), strict=True)]
        return {"BLEU": self.bleu.compute_bleu(sums[:4], sums[4:8], sums[8], sums[9], smooth_method="exp").score}


class Summarization(_Shown):
    """Summarising an article in a sentence, after examples.

    Args:
        units: what ROUGE counts; None for its own English words.
    """

    def __init__(self, *arguments: Any, units: Units | None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.units = units

    def prompt(self, content: Passage) -> str:
        """Articles with their summaries, and the article."""
        # Without the space at its end: tokens begin with theirs.
        shown = [f"{each.text.rstrip(' ')} {each.reference.strip()}" for each in self.examples]
        return "".join(shown) + content.text.rstrip(" ")

    def record(self, content: Passage, written: Written) -> Record:
        """ROUGE of the summary."""
        text, reference = written.text.strip(), content.reference.strip()
        scores = rouge([text], [reference], self.units)
        metrics = {name: scores[name] for name in ("rouge1", "rouge2", "rougeL")}
        return {
            "prefix": content.text.strip(),
            "text": text,
            "reference": reference,
            "metrics": {**metrics, "tokens": written.tokens},
        }


class Code(GenerationTask):
    """Writing a function, which its tests then run.

    Args:
        samples: programs a problem, where tokens are drawn; else one program stands for all.
        k: of pass@k.
        limits: of each program.
        weak: see :func:`decoding.evals.sandbox.run_program`.
    """

    def __init__(
        self, *arguments: Any, samples: int, k: Sequence[int], limits: Limits, weak: bool, **more: Any
    ) -> None:
        super().__init__(*arguments, **more)
        bad = next((each for each in k if not 1 <= each <= samples), None)
        if bad is not None:
            raise OptionError(f"--k {bad}: there are {samples} samples a problem; accepted are 1 to {samples}")
        self.samples, self.k, self.limits, self.weak = samples, k, limits, weak
        self.settings = {**self.settings, "samples": samples, "k": list(k), "limits": vars(limits)}

    def prompt(self, content: Problem) -> str:
        """Signature and docstring."""
        return content.prompt

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """See :class:`decoding.evals.runner.Task`."""
        records: list[list[Record]] = [[] for _ in documents]
        for configuration in configurations:
            count = self.samples if configuration.choice.draws else 1
            prompts = [self.prompt(each.content) for each in documents for _ in range(count)]
            seeds = [configuration.seed(f"{each.id} {index}") for each in documents for index in range(count)]
            made = self.writer.write(configuration.choice, prompts, seeds)
            for index, (document, row) in enumerate(zip(documents, records, strict=True)):
                written = made[index * count : (index + 1) * count]
                row.append({"strategy": configuration.label, **self._record(document.content, written)})
        return records

    def record(self, content: Problem, written: Written) -> Record:
        """Of a single program."""
        return self._record(content, [written])

    def _record(self, problem: Problem, written: Sequence[Written]) -> Record:
        outcomes = [run_program(problem.program(each.text), self.limits, weak=self.weak) for each in written]
        passed = sum(each.passed for each in outcomes)
        # One program that is always the same stands for as many as are asked of.
        shares = {
            f"pass@{k}": pass_at_k(len(written), passed, k) if len(written) > 1 else float(passed) for k in self.k
        }
        return {
            "problem": problem.id,
            "prefix": problem.prompt,
            "text": written[0].text,
            "reference": "",
            "texts": [each.text for each in written],
            "outcomes": [each.reason for each in outcomes],
            "metrics": {**shares, "tokens": sum(each.tokens for each in written) / len(written)},
        }
