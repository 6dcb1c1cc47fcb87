"""English morphology and phrases for the stories: enough agreement to be read with pleasure, and no more."""

import random
from dataclasses import dataclass

from decoding.evals.miniature import lexicon as words

_PAST = dict(
    pair.split(":")
    for pair in words.words(
        """
        run:ran ride:rode creep:crept go:went come:came drive:drove hold:held hide:hid find:found
        keep:kept sell:sold bring:brought throw:threw shake:shook put:put buy:bought draw:drew
        forget:forgot lose:lost steal:stole sweep:swept ring:rang light:lit feed:fed write:wrote dig:dug
        cut:cut set:set read:read hang:hung sing:sang sit:sat stand:stood lie:lay sleep:slept
        kneel:knelt fall:fell weep:wept say:said take:took wake:woke begin:began think:thought
        hear:heard know:knew see:saw feel:felt understand:understood eat:ate drink:drank give:gave
        tell:told leave:left meet:met be:was have:had make:made teach:taught shoe:shod get:got
        speak:spoke lend:lent show:showed sew:sewed become:became swim:swam win:won
        """
    )
)
_DOUBLING = words.words("step stop run sit drop wrap nod forget cut set dig put get begin shrug chop swim win hum stir")
_KEEPS_E = ("see", "flee", "shoe", "be")


def past(phrase: str) -> str:
    """The past tense of a verb phrase given in the base form: "pick up" -> "picked up"."""
    verb, _, rest = phrase.partition(" ")
    if verb in _PAST:
        form = _PAST[verb]
    elif verb in _DOUBLING:
        form = verb + verb[-1] + "ed"
    elif verb.endswith("e"):
        form = verb + "d"
    elif verb.endswith("y") and verb[-2] not in "aeou":
        form = verb[:-1] + "ied"
    else:
        form = verb + "ed"
    return f"{form} {rest}".rstrip()


def participle(phrase: str) -> str:
    """The -ing form of a verb phrase given in the base form: "sit down" -> "sitting down"."""
    verb, _, rest = phrase.partition(" ")
    if verb == "lie":
        form = "lying"
    elif verb in _DOUBLING:
        form = verb + verb[-1] + "ing"
    elif verb.endswith("e") and verb not in _KEEPS_E:
        form = verb[:-1] + "ing"
    else:
        form = verb + "ing"
    return f"{form} {rest}".rstrip()


INFLECT = {"past": past, "participle": participle, "base": lambda phrase: phrase}


def article(phrase: str) -> str:
    """A phrase with "a" or "an" before it."""
    return ("an " if phrase[0] in "aeiou" else "a ") + phrase


def sentence(text: str) -> str:
    """A clause as a sentence: capital first, full stop last."""
    text = text[0].upper() + text[1:]
    return text if text[-1] in ".?!\"'" else text + "."


@dataclass(frozen=True)
class Character:
    """Somebody in a story, with the pronouns that agree."""

    name: str
    she: str
    her: str
    possessive: str
    trade: str

    @classmethod
    def draw(cls, rng: random.Random, but: tuple[str, ...] = ()) -> "Character":
        if rng.random() < 0.5:
            name = rng.choice([n for n in words.WOMEN if n not in but])
            return cls(name, "she", "her", "her", rng.choice(words.TRADES))
        return cls(rng.choice([n for n in words.MEN if n not in but]), "he", "him", "his", rng.choice(words.TRADES))


@dataclass
class Phrases:
    """Noun phrases, places and verb phrases, drawn with the story's own things more often than others.

    A document keeps to a few things, places and landscapes of its own, as a text about something does.
    """

    rng: random.Random
    towns: tuple[str, ...]

    def __post_init__(self) -> None:
        pick = self.rng.sample
        self.own_things = pick(words.THINGS, 3)
        self.own_places = pick(words.PLACES, 3)
        self.own_rooms = pick(words.ROOMS, 2)
        self.own_land = pick(words.LAND, 2)
        self.own_animal = self.rng.choice(words.ANIMALS)
        self.own_town = self.rng.choice(self.towns)

    def _own(self, own: list[str], every: tuple[str, ...], share: float = 0.45) -> str:
        return self.rng.choice(own) if self.rng.random() < share else self.rng.choice(every)

    def _maybe(self, adjectives: tuple[str, ...], noun: str, share: float = 0.4) -> str:
        return f"{self.rng.choice(adjectives)} {noun}" if self.rng.random() < share else noun

    def thing(self, owner: Character | None = None) -> str:
        """A carried thing with its determiner: "the rusty key", "her lantern"."""
        noun = self._maybe(words.THING_ADJECTIVES, self._own(self.own_things, words.THINGS))
        draw = self.rng.random()
        if owner is not None and draw < 0.25:
            return f"{owner.possessive} {noun}"
        return article(noun) if draw < 0.5 else f"the {noun}"

    def animal(self) -> str:
        noun = self._own([self.own_animal], words.ANIMALS)
        noun = self._maybe(words.ANIMAL_ADJECTIVES, noun)
        return article(noun) if self.rng.random() < 0.6 else f"the {noun}"

    def place(self) -> str:
        return "the " + self._maybe(words.PLACE_ADJECTIVES, self._own(self.own_places, words.PLACES))

    def land(self) -> str:
        return "the " + self._maybe(words.LAND_ADJECTIVES, self._own(self.own_land, words.LAND))

    def fill(self, template: str) -> str:
        """A path or a spot with its places filled in."""
        return template.format(
            place=self._own(self.own_places, words.PLACES),
            room=self._own(self.own_rooms, words.ROOMS),
            land=self._own(self.own_land, words.LAND),
            way=self.rng.choice(words.WAYS),
            adjp=self.rng.choice(words.PLACE_ADJECTIVES),
            adjl=self.rng.choice(words.LAND_ADJECTIVES),
            town=self._own([self.own_town], self.towns),
        )

    def path(self) -> str:
        return self.fill(self.rng.choice(words.PATHS))

    def spot(self) -> str:
        return self.fill(self.rng.choice(words.SPOTS))
