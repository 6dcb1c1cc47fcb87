"""The documents of the generation tasks, read from files in their published formats."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from decoding.errors import InputError, OptionError
from decoding.evals.tasks.multilingual.languages import LANGUAGES, language
from decoding.rows import Row, documents, read_lines, read_rows

__all__ = ["Passage", "Problem", "Source", "articles", "passages", "problems", "sources", "translations"]

ENDINGS = (".jsonl", ".json", ".csv", ".parquet", ".txt")


@dataclass(frozen=True)
class Passage:
    """A text to continue, translate or summarise, and its reference ("" where the data have none)."""

    text: str
    reference: str


@dataclass(frozen=True)
class Problem:
    """A function to write, and its tests.

    Attributes:
        id: of the data set.
        prompt: imports, signature, docstring.
        entry_point: the function's name.
        test: source of ``check(candidate)``.
    """

    id: str
    prompt: str
    entry_point: str
    test: str

    def program(self, completion: str) -> str:
        """A program of the completed function and its tests, which reaches its end if they pass."""
        return f"{self.prompt}{completion}\n{self.test}\ncheck({self.entry_point})\n"


@dataclass(frozen=True)
class Source:
    """The files of a language: one, or two with a sentence a line (``target`` is the second one)."""

    file: Path
    target: Path | None = None


def sources(data: str, languages: Sequence[str] | None, target: str | None = None) -> dict[str, Source]:
    """The files of languages.

    Args:
        data: ``de=FILE,fr=FILE``; a folder with ``de.jsonl``, ... (or .json, .csv, .parquet, .txt), or, for
            translations, with pairs such as ``tatoeba.deu-eng.deu`` and ``tatoeba.deu-eng.eng``; or one file, of the
            only language in ``languages``.
        languages: codes; None for all languages with files.
        target: language of the translations.

    Raises:
        OptionError: a language that is none of the 16, or without a file; or no file at all.
    """
    codes = None if languages is None else [language(code, "--languages").code for code in languages]
    if "=" in data and not Path(data).exists():
        files = {}
        for pair in data.split(","):
            code, equals, file = pair.partition("=")
            if not equals:
                raise OptionError(f"--data {pair!r}: expected LANGUAGE=FILE,LANGUAGE=FILE")
            code = language(code.strip(), "--data").code
            if code in files:
                raise OptionError(f"--data {data}: {code} is given twice")
            files[code] = Source(Path(file.strip()))
    elif Path(data).is_dir():
        files = {code: source for code in LANGUAGES if (source := _in_folder(Path(data), code, target)) is not None}
    else:
        if codes is None or len(codes) != 1:
            raise OptionError(f"--data {data}: is one file; name its language with --languages CODE")
        files = {codes[0]: Source(Path(data))}
    if not files:
        raise OptionError(f"--data {data}: has no file of any language; expected names such as de.jsonl")
    missing = [code for code in codes or () if code not in files]
    if missing:
        raise OptionError(f"--languages {missing[0]}: --data {data} has no file of it; it has {', '.join(files)}")
    return files if codes is None else {code: files[code] for code in codes}


def _in_folder(folder: Path, code: str, target: str | None) -> Source | None:
    if target is not None and target != code:
        first, second = LANGUAGES[code].alpha3, LANGUAGES[target].alpha3
        for pair in (f"{first}-{second}", f"{second}-{first}"):
            for file in sorted(folder.glob(f"*.{pair}.{first}")):
                if file.with_suffix(f".{second}").is_file():
                    return Source(file, file.with_suffix(f".{second}"))
    files = (folder / f"{code}{suffix}" for suffix in ENDINGS)
    return next((Source(file) for file in files if file.is_file()), None)


def passages(source: Source, skip_bad: bool = False) -> tuple[list[Passage], list[str]]:
    """Texts to continue: ``prefix_text`` and ``reference_text``, or ``text`` alone; plain files have a text a line.

    Returns:
        The passages, whose ``text`` is "" where the data have no prefix; and why rows were left out.

    Raises:
        InputError: the first bad row without ``skip_bad``, or no good one.
    """

    def passage(row: Row) -> Passage:
        if "prefix_text" in row:
            return Passage(row.text("prefix_text"), str(row.fields.get("reference_text") or ""))
        return Passage("", row.text("text"))

    return documents(read_rows(source.file), passage, skip_bad=skip_bad)


def translations(source: Source, code: str, target: str, skip_bad: bool = False) -> tuple[list[Passage], list[str]]:
    """Sentences and their translations: columns named by language, or two files line by line.

    Raises:
        InputError: as :func:`passages`; or files of different lengths.
    """
    if source.target is None:
        return documents(
            read_rows(source.file), lambda row: Passage(row.text(code), row.text(target)), skip_bad=skip_bad
        )
    texts, wanted = read_lines(source.file), read_lines(source.target)
    if len(texts) != len(wanted):
        raise InputError(f"{source.file} has {len(texts)} lines and {source.target.name} {len(wanted)}")
    return [Passage(*pair) for pair in zip(texts, wanted, strict=True) if all(text.strip() for text in pair)], []


def articles(file: Path, skip_bad: bool = False) -> tuple[list[Passage], list[str]]:
    """Articles and summaries: ``document`` and ``summary`` (XSum), ``article`` and ``highlights`` (CNN/DailyMail), or
    ``context`` and ``completion``, whose context is the whole prompt.

    Raises:
        InputError: as :func:`passages`.
    """

    def article(row: Row) -> Passage:
        for text, summary in (("context", "completion"), ("article", "highlights")):
            if text in row:
                content = row.text(text)
                return Passage(content if text == "context" else _article(content), row.text(summary))
        return Passage(_article(row.text("document")), row.text("summary"))

    return documents(read_rows(file), article, skip_bad=skip_bad)


def problems(file: Path, skip_bad: bool = False) -> tuple[list[Problem], list[str]]:
    """Programming problems in the format of HumanEval.

    Raises:
        InputError: as :func:`passages`.
    """
    columns = ("task_id", "prompt", "entry_point", "test")
    return documents(read_rows(file), lambda row: Problem(*map(row.text, columns)), skip_bad=skip_bad)


def _article(text: str) -> str:
    # The frame of the published in-context examples.
    return f"\n\nArticle:\n{text}\n\nSummarization: "
