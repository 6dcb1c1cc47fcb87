"""The 16 languages of "Contrastive Search Is What You Need For Neural Text Generation" (Su & Collier, TMLR 2023)."""

from __future__ import annotations

from dataclasses import dataclass

from decoding.errors import OptionError, nearest

__all__ = ["LANGUAGES", "Language", "language"]


@dataclass(frozen=True)
class Language:
    """A language, and how its texts are generated and measured.

    Attributes:
        code: ISO 639-1.
        alpha3: ISO 639-3, for names of data files.
        name: in English, for prompts.
        own_name: in the language itself.
        top_k: of contrastive search in the paper's open-ended experiments; α is 0.6 in all.
        units: the units of n-grams (:func:`decoding.evals.metrics.units.splitter`).
        bleu: sacrebleu's tokenizer for translations into it.
    """

    code: str
    alpha3: str
    name: str
    own_name: str
    top_k: int
    units: str = "whitespace"
    bleu: str = "13a"


# Words are not separated in Chinese, Japanese and Thai. sacrebleu has a tokenizer for Chinese; those for Japanese and
# Korean need MeCab, so Japanese and Thai are cut into characters, which is reported with the score.
LANGUAGES = {
    language.code: language
    for language in (
        Language("en", "eng", "English", "English", 4),
        Language("zh", "cmn", "Chinese", "中文", 3, "characters", "zh"),
        Language("ja", "jpn", "Japanese", "日本語", 5, "characters", "char"),
        Language("ko", "kor", "Korean", "한국어", 3),
        Language("fr", "fra", "French", "français", 3),
        Language("de", "deu", "German", "Deutsch", 4),
        Language("es", "spa", "Spanish", "español", 3),
        Language("it", "ita", "Italian", "italiano", 3),
        Language("pt", "por", "Portuguese", "português", 3),
        Language("nl", "nld", "Dutch", "Nederlands", 4),
        Language("ru", "rus", "Russian", "русский", 4),
        Language("ar", "ara", "Arabic", "العربية", 3),
        Language("hi", "hin", "Hindi", "हिन्दी", 3),
        Language("bn", "ben", "Bengali", "বাংলা", 3),
        Language("th", "tha", "Thai", "ไทย", 3, "characters", "char"),
        Language("id", "ind", "Indonesian", "Bahasa Indonesia", 3),
    )
}


def language(code: str, what: str = "language") -> Language:
    """The language of a code.

    Args:
        code: ISO 639-1.
        what: names it in the message, such as the option that has the code.

    Raises:
        OptionError: none of the 16.
    """
    if code not in LANGUAGES:
        raise OptionError(f"{what} {code!r}{nearest(code, LANGUAGES)}")
    return LANGUAGES[code]
