"""The generation tasks: prompts, records of the generated texts, and figures."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

from decoding.errors import InputError, OptionError
from decoding.evals.engine.configurations import Configuration, digest
from decoding.evals.engine.task import Document, GroupTask, Record
from decoding.evals.engine.text_generation import GeneratedText, TextGenerator
from decoding.evals.metrics.distribution import mauve
from decoding.evals.metrics.likelihood import coherence
from decoding.evals.metrics.overlap import character_counts, chrf_of_counts, rouge
from decoding.evals.metrics.repetition import counted, diversity, diversity_of, pooled
from decoding.evals.metrics.units import Units, splitter
from decoding.evals.tasks.multilingual.data import Passage
from decoding.evals.tasks.multilingual.languages import Language

__all__ = ["TASKS", "GenerationTask", "OpenEnded", "Summarization", "Translation"]

# Names of the tasks and the figures of their tables; the first one is plotted.
TASKS: dict[str, tuple[str, ...]] = {
    "open-ended": ("diversity", "rep-2", "rep-3", "rep-4", "tokens"),
    "translation": ("BLEU", "chrF", "sentence chrF", "tokens"),
    "summarization": ("rougeL", "rouge1", "rouge2", "tokens"),
    "code": ("pass@1", "tokens"),
}


# Of the references' diversity. Continuations of texts that loop are coherent: their own model expects the loop.
REFERENCE_SHARE = 0.95


class GenerationTask(GroupTask):
    """Texts generated from prompts.

    Args:
        name: of the task, in files.
        generator: the model, the length of its texts and their stop strings.
        settings: JSON-able; the documents' digest and the generator's settings are added.
        skipped: why rows were left out.
        batch_size: prompts in a batch.
    """

    corpus_resamples = 1000

    def __init__(
        self,
        name: str,
        generator: TextGenerator,
        contents: Sequence[Any],
        settings: Mapping[str, Any],
        skipped: Sequence[str] = (),
        batch_size: int = 8,
    ) -> None:
        self.name, self.generator, self.contents, self.model = name, generator, contents, generator.model
        self.skipped, self.group_size = skipped, batch_size
        self.settings = {
            "task": name,
            "documents": digest([vars(content) for content in contents]),
            "max_new_tokens": generator.max_new_tokens,
            "stop": list(generator.stop),
            **settings,
        }

    @abstractmethod
    def prompt(self, content: Any) -> str:
        """The text that the model continues."""

    @abstractmethod
    def record(self, content: Any, generated: GeneratedText) -> Record:
        """``metrics`` of a text, and further entries of its record."""

    def documents(self) -> Sequence[Document]:
        """The documents, numbered in the order of the file."""
        return [Document(f"{index:05}", content) for index, content in enumerate(self.contents)]

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """One generated text a document and configuration."""
        prompts = [self.prompt(document.content) for document in documents]
        records: list[list[Record]] = [[] for _ in documents]
        for configuration in configurations:
            seeds = [configuration.seed(document.id) for document in documents]
            texts = self.generator.generate(configuration.spec, prompts, seeds, configuration.generation_config)
            for document, generated, row in zip(documents, texts, records, strict=True):
                row.append({"strategy": configuration.label, **self.record(document.content, generated)})
        return records


class OpenEnded(GenerationTask):
    """Continuing the beginning of a text.

    Args:
        prefix_length: number of tokens of each text, prefix and reference together, that are the prompt; None takes the
            data's prefixes.
        units: the units of n-grams.
        judge: model and tokenizer for coherence.
        featurizer: model and tokenizer for MAUVE.
    """

    def __init__(
        self,
        *arguments: Any,
        prefix_length: int | None = None,
        units: Units = "whitespace",
        judge: tuple[Any, Any] | None = None,
        featurizer: tuple[Any, Any] | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*arguments, **more)
        self.prefix_length, self.split = prefix_length, splitter(units)
        self.judge, self.featurizer = judge, featurizer
        if featurizer is not None and sum(bool(self._parts(passage)[1].strip()) for passage in self.contents) < 2:
            raise InputError(f"{self.name}: MAUVE needs references, which fewer than 2 of the data's texts have")

    @property
    def criterion(self) -> Sequence[str]:  # type: ignore[override]
        """Coherence, among the texts that repeat themselves hardly more than the references (:meth:`bounds`)."""
        return ("coherence",) if self.judge is not None else ()

    def bounds(self, documents: Sequence[Document]) -> Mapping[str, float]:
        """``REFERENCE_SHARE`` of the diversity of the references.

        Raises:
            OptionError: a document without a reference.
        """
        references = [self._parts(document.content)[1] for document in documents]
        if not all(text.strip() for text in references):
            raise OptionError(f"{self.name}: has texts without a reference: give --at-least diversity=VALUE")
        return {"diversity": REFERENCE_SHARE * diversity(references, self.split)}

    def _parts(self, passage: Passage) -> tuple[str, str]:
        """The prompt and its reference continuation."""
        if self.prefix_length is None:
            return passage.text, passage.reference
        whole = passage.text + passage.reference
        encoding = self.generator.tokenizer(whole, add_special_tokens=False, return_offsets_mapping=True)
        # A character of several tokens at the end is read whole.
        end = encoding["offset_mapping"][: self.prefix_length][-1][1]
        return whole[:end], whole[end:]

    def prompt(self, content: Passage) -> str:
        """The prefix."""
        return self._parts(content)[0]

    def evaluate_group(
        self, documents: Sequence[Document], configurations: Sequence[Configuration]
    ) -> Sequence[Sequence[Record]]:
        """One generated text a document and configuration. The judge reads all texts of the group together."""
        records = super().evaluate_group(documents, configurations)
        if self.judge is not None:
            flat = [record for row in records for record in row]
            prefixes, texts = ([record[name] for record in flat] for name in ("prefix", "text"))
            for record, value in zip(flat, coherence(prefixes, texts, *self.judge).texts, strict=True):
                record["coherence"] = value
        return records

    def record(self, content: Passage, generated: GeneratedText) -> Record:
        """Counts of n-grams, which are pooled over the documents."""
        prefix, reference = self._parts(content)
        words = self.split(generated.text)
        return {
            "prefix": prefix,
            "text": generated.text,
            "reference": reference,
            "ngrams": [counted(words, n) for n in (2, 3, 4)],
            "metrics": {"tokens": generated.tokens},
        }

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """rep-n and diversity as in the papers; coherence over the texts that are not empty (0 if all are)."""
        shares = [pooled([record["ngrams"][n] for record in records]) for n in range(3)]
        figures = {"diversity": diversity_of(shares), "rep-2": shares[0], "rep-3": shares[1], "rep-4": shares[2]}
        if self.judge is not None:
            values = [record["coherence"] for record in records if record["coherence"] is not None]
            figures["coherence"] = sum(values) / len(values) if values else 0.0
        return figures

    def corpus_metrics_once(self, records: Sequence[Record]) -> Mapping[str, float]:
        """MAUVE of texts and references, each pair cut to its shorter side."""
        if self.featurizer is None:
            return {}
        texts, references = ([record[name] for record in records] for name in ("text", "reference"))
        return {"MAUVE": mauve(texts, references, *self.featurizer, same_length=True).score}


class _FewShot(GenerationTask):
    """A task whose prompt begins with examples."""

    def __init__(self, *arguments: Any, examples: Sequence[Passage], **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.examples = examples
        self.settings = {**self.settings, "examples": digest([vars(example) for example in examples])}


class Translation(_FewShot):
    """Translating a sentence, after examples.

    Args:
        languages: of the text and of the translation.
    """

    criterion = ("BLEU",)

    def __init__(self, *arguments: Any, languages: tuple[Language, Language], **more: Any) -> None:
        from sacrebleu.metrics import BLEU

        super().__init__(*arguments, **more)
        self.languages = languages
        self.bleu = BLEU(tokenize=languages[1].bleu, effective_order=True)  # of a sentence; its counts are summed

    def prompt(self, content: Passage) -> str:
        """Pairs under the languages' names, and the sentence."""
        source, target = (language.name for language in self.languages)
        shots = [f"{source}: {example.text}\n{target}: {example.reference}\n\n" for example in self.examples]
        return f"{''.join(shots)}{source}: {content.text}\n{target}:"

    def record(self, content: Passage, generated: GeneratedText) -> Record:
        """ChrF of the sentence, and the counts that BLEU and chrF add up."""
        text = generated.text.strip()
        score = self.bleu.sentence_score(text, [content.reference])
        characters = character_counts(text, content.reference)
        return {
            "prefix": content.text,
            "text": text,
            "reference": content.reference,
            "bleu": [*score.counts, *score.totals, score.sys_len, score.ref_len],
            "characters": characters,
            "metrics": {"sentence chrF": chrf_of_counts(characters), "tokens": generated.tokens},
        }

    def corpus_metrics(self, records: Sequence[Record]) -> Mapping[str, float]:
        """BLEU and chrF of all sentences together, as sacrebleu computes them."""
        words, characters = (
            [sum(column) for column in zip(*(record[name] for record in records), strict=True)]
            for name in ("bleu", "characters")
        )
        bleu = self.bleu.compute_bleu(words[:4], words[4:8], words[8], words[9], smooth_method="exp")
        return {"BLEU": bleu.score, "chrF": chrf_of_counts(characters)}


class Summarization(_FewShot):
    """Summarising an article in a sentence, after examples.

    Args:
        units: the units of ROUGE; None for its own English words.
    """

    criterion = ("rougeL",)

    def __init__(self, *arguments: Any, units: Units | None, **more: Any) -> None:
        super().__init__(*arguments, **more)
        self.units = units

    def prompt(self, content: Passage) -> str:
        """Articles with their summaries, and the article."""
        # Without a space at the end: tokens begin with theirs.
        shots = [f"{example.text.rstrip(' ')} {example.reference.strip()}" for example in self.examples]
        return "".join(shots) + content.text.rstrip(" ")

    def record(self, content: Passage, generated: GeneratedText) -> Record:
        """ROUGE of the summary."""
        text, reference = generated.text.strip(), content.reference.strip()
        scores = rouge([text], [reference], self.units)
        metrics = {name: scores[name] for name in ("rouge1", "rouge2", "rougeL")}
        return {
            "prefix": content.text.strip(),
            "text": text,
            "reference": reference,
            "metrics": {**metrics, "tokens": generated.tokens},
        }
