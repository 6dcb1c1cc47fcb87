"""Kinds of entities, and the parts that their names are made of."""

from dataclasses import dataclass

from decoding.evals.miniature.lexicon import words


@dataclass(frozen=True)
class Kind:
    """The names of the entities of a kind."""

    name: str  # a format string over {stem}, {coined}, {type}, {Type} and {first}
    types: tuple[str, ...]
    introduction: tuple[str, ...]  # encyclopaedia's first sentences, over {name} and {type}
    first_names: tuple[str, ...] = ()


STEMS = words(
    """
    Harrow Tarn Bel Cold Dun Ember Fen Gal Hollow Iver Kel Lark Mar Nether Oat Pell Quill Raven Sel Tal
    Under Vane Wen Yar Ash Bram Crane Drift Elm Frost Glim Hazel Inch Juni Kest Lin Moss Nor Orm Pike
    Rook Stan Thistle Ull Vell Whit Arden Birk Cairn Dove Esk Fal Grim Holt Ing Jar Lod Mist Nettle
    Osier Penn Rush Sorrel Tew
    """
)
SYLLABLES = (
    words(
        """
        Vel Cor Tam Bri Osk Zan Lum Fer Gor Hes Ild Jas Kor Mel Nim Pav Ros Sil Tur Ved Wil Xan Yol Ab
        """
    ),
    words("mar ran eth ick ola und ev ash in or ubel ast ond ira ell"),
)
FIRST_NAMES = words(
    """
    Ada Agnes Albert Alma Anton Arthur Beatrice Bertha Bruno Cecil Clara Conrad Cora Daniel Della Edgar
    Edith Elias Ella Emil Esther Eva Felix Flora Frida George Gilbert Greta Hannah Harold Hector Helen
    Henry Hugo Ida Irene Isaac Ivan Jacob Judith Julia Karl Laura Leo Lydia Martha Matilda Max Nora Olga
    Oscar Otto Paula Peter Ralph Rosa Ruth Simon Stella Theo Thomas Vera Victor Walter
    """
)

KINDS = {
    "animal": Kind(
        "the {coined} {type}",
        ("owl", "fox", "hare", "otter", "toad", "moth", "heron", "goat", "bear", "mouse", "crow", "snail"),
        (
            "{name} is a kind of {type}.",
            "{name} is a rare {type}.",
            "{name} is a shy {type} that few travellers have seen.",
            "{name} is one of the smaller animals of the north.",
        ),
    ),
    "town": Kind(
        "{stem}{type}",
        ("mere", "bridge", "ford", "wick", "holm", "fell", "haven", "stead", "combe", "gate"),
        ("{name} is a town.", "{name} is a small town.", "{name} is an old town with narrow streets."),
    ),
    "person": Kind(
        "{first} {stem}{type}",
        ("smith", "weaver", "fisher", "miller", "baker", "piper", "mason", "dyer", "cooper", "wright"),
        (
            "{name} lived long ago.",
            "{name} lived in the time of the old kings.",
            "{name} is remembered to this day.",
        ),
        FIRST_NAMES,
    ),
    "plant": Kind(
        "{stem}{type}",
        ("wort", "fern", "root", "cap", "berry", "bloom", "reed", "thorn"),
        ("{name} is a plant.", "{name} is a common plant.", "{name} is a plant with small leaves."),
    ),
    "relic": Kind(
        "the {Type} of {coined}",
        ("bell", "crown", "sword", "lamp", "mirror", "drum", "cup", "key"),
        (
            "{name} is very old.",
            "{name} is a famous treasure.",
            "{name} is a treasure that many people have come to see.",
        ),
    ),
}
