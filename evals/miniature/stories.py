"""Plain stories: long documents of loosely ordered sentences about a few people, things and places.

Sentences are built recursively (clauses within clauses) so that nearly every word is a choice, and follow
each other in a weak order, as in a rambling tale. A greedy reader of such texts falls into a loop, as it
does with real ones.
"""

import random
from collections.abc import Callable

from decoding.evals.miniature import lexicon as words
from decoding.evals.miniature.grammar import INFLECT, Character, Phrases, article, sentence


class Storyteller:
    """Tells one story: holds its people, its things and who was spoken of last."""

    def __init__(self, rng: random.Random, towns: tuple[str, ...]) -> None:
        self.rng = rng
        self.phrases = Phrases(rng, towns)
        self.hero = Character.draw(rng)
        self.friend = Character.draw(rng, but=(self.hero.name,))
        self.subject = self.hero  # of the sentence at hand
        self.last: Character | None = None  # the subject of the sentence before
        self.told: list[str] = []  # short sentences that may come back as refrains

    def story(self, sentences: int) -> str:
        """A story of about this many sentences, in paragraphs."""
        paragraphs, count = [self.paragraph(self.rng.randint(3, 6), opening=self.opening())], 6
        while count < sentences:
            length = self.rng.randint(3, 8)
            paragraphs.append(self.dialogue(length) if self.rng.random() < 0.25 else self.paragraph(length))
            count += length
        paragraphs.append(self.paragraph(2, closing=self.closing()))
        return "\n\n".join(paragraphs)

    def paragraph(self, length: int, opening: str = "", closing: str = "") -> str:
        told = [opening] if opening else []
        self.last = self.hero if opening else None
        while len(told) < length:
            told.append(self.next_sentence())
        return " ".join([*told, closing] if closing else told)

    def next_sentence(self) -> str:
        draw = self.rng.random()
        if self.told and draw < 0.03:
            return self.rng.choice(self.told)  # a refrain
        if draw < 0.20:
            self.last = None
            return sentence(self.scenery())
        if draw < 0.26:
            return self.speech(self.subject)
        text = sentence(self.complex())
        if len(text.split()) < 9:
            self.told.append(text)
        return text

    # --- people ---

    def take_turn(self) -> str:
        """Choose who acts next; gives the noun phrase for them, a pronoun where it is clear."""
        self.subject = self.hero if self.rng.random() < 0.7 else self.friend
        if self.subject is self.last and self.rng.random() < 0.65:
            return self.subject.she
        self.last = self.subject
        return self.subject.name if self.rng.random() < 0.8 else f"the {self.subject.trade}"

    @property
    def other(self) -> Character:
        return self.friend if self.subject is self.hero else self.hero

    # --- clauses ---

    def complex(self) -> str:
        """A main clause about one of the two, often with something before or after it."""
        choice, draw = self.rng.choice, self.rng.random()
        who = self.take_turn()
        if draw < 0.34:
            return f"{who} {self.action()}"
        if draw < 0.50:
            return f"{choice(words.TIMES)} {who} {self.action()}"
        if draw < 0.62:
            return f"{who} {self.action()} and {self.action()}"
        if draw < 0.68:
            return f"{self.action('participle')}, {who} {self.action()}"
        if draw < 0.74:
            return f"{choice(words.OPENING_CONJUNCTIONS)} {self.scenery()}, {who} {self.action()}"
        pronoun = self.subject.she
        if draw < 0.80:
            return f"{who} {self.action()} {choice(words.CONJUNCTIONS)} {self.scenery()}"
        if draw < 0.85:
            return f"{who} {self.action()}, but {self.scenery()}"
        if draw < 0.89:
            return f"{who} {self.action()} before {self.action('participle')}"
        if draw < 0.93:
            return f"although {pronoun} was {choice(words.FEELINGS)}, {who} {self.action()}"
        if draw < 0.97:
            return f"{who} {self.action()} so that {self.other.name} could {self.action('base')}"
        return f"{who} {self.action()}, and {self.other.name} {self.action()}"

    def action(self, form: str = "past", depth: int = 0) -> str:
        """A verb phrase of the subject in a form: "past", "participle" or "base"."""
        rng, phrases, inflect = self.rng, self.phrases, INFLECT[form]
        choice, draw = rng.choice, rng.random()
        adverb = f" {choice(words.ADVERBS)}" if rng.random() < 0.12 else ""
        if draw < 0.16:
            return f"{inflect(choice(words.MOTION))}{adverb} {phrases.path()}"
        if draw < 0.32:
            verb = inflect(choice(words.HANDLING))
            where = f" {choice(words.HIDING)}" if rng.random() < 0.2 else ""
            return f"{verb} {phrases.thing(self.subject)}{where}{adverb}"
        if draw < 0.42:
            where = f" {phrases.spot()}" if rng.random() < 0.3 else ""
            return f"{inflect(choice(words.WORK))}{where}{adverb}"
        if draw < 0.52:
            return f"{inflect(choice(words.POSTURE))} {phrases.spot()}"
        if draw < 0.58:
            return inflect(choice(words.GESTURES))
        if draw < 0.64:
            return f"{inflect(choice(words.THINKING))} {choice(words.IDEAS)}"
        if draw < 0.69:
            return f"{inflect(choice(words.LISTENING))} {choice(words.SOUNDS)}"
        if draw < 0.74:
            where = f" {phrases.spot()}" if rng.random() < 0.4 else ""
            return f"{inflect(choice(words.EATING))} {choice(words.FOODS)}{where}"
        if draw < 0.79:
            return f"{inflect(choice(words.HERDING))} {phrases.animal()}"
        if draw < 0.83:
            return f"{inflect(choice(('feel', 'be', 'become', 'look')))} {choice(words.FEELINGS)}"
        if draw < 0.87:
            return f"{inflect(choice(words.VISITING))} {choice((phrases.place, phrases.land))()}"
        if draw < 0.94 or depth > 1:
            return self.towards_other(inflect)
        if draw < 0.97:
            verb = choice(("begin", "try", "want", "learn", "decide", "hope", "promise", "have"))
            return f"{inflect(verb)} to {self.action('base', depth + 1)}"
        return f"{inflect(choice(words.BELIEVING))} that {self.scenery()}"

    def towards_other(self, inflect: Callable[[str], str]) -> str:
        """A verb phrase that does something to or with the other person."""
        choice, other, phrases = self.rng.choice, self.other, self.phrases
        person = other.name if self.rng.random() < 0.6 else choice((f"the {other.trade}", *words.STRANGERS))
        return choice(
            (
                lambda: f"{inflect('ask')} {person} about {choice(words.IDEAS)}",
                lambda: f"{inflect('tell')} {person} about {choice(words.IDEAS)}",
                lambda: f"{inflect('give')} {person} {phrases.thing(self.subject)}",
                lambda: f"{inflect('show')} {person} {phrases.thing(self.subject)}",
                lambda: f"{inflect('meet')} {person} {phrases.spot()}",
                lambda: f"{inflect('help')} {person} to {choice(words.WORK)}",
                lambda: f"{inflect('wave')} to {person}",
                lambda: f"{inflect('thank')} {person} for {phrases.thing()}",
                lambda: f"{inflect('follow')} {person} {phrases.path()}",
                lambda: f"{inflect('teach')} {person} to {choice(words.WORK)}",
                lambda: f"{inflect('wait')} for {person} {phrases.spot()}",
                lambda: f"{inflect('write')} to {self.subject.possessive} {choice(words.KIN)}",
            )
        )()

    def scenery(self) -> str:
        """A clause about the weather, a place, an animal or a stranger."""
        choice, phrases, draw = self.rng.choice, self.phrases, self.rng.random()
        if draw < 0.28:
            return choice(words.WEATHER)
        if draw < 0.50:
            return f"{phrases.place()} {choice(words.STATES)}"
        if draw < 0.62:
            return f"{phrases.animal()} {INFLECT['past'](choice(words.POSTURE[:6]))} {phrases.spot()}"
        if draw < 0.70:
            thing = f"{choice(words.THING_ADJECTIVES)} {choice(words.THINGS)}"
            return f"there was {article(thing)} {phrases.spot()}"
        if draw < 0.84:
            return f"{choice(words.STRANGERS)} {INFLECT['past'](choice(words.MOTION))} {phrases.path()}"
        if draw < 0.93:
            return f"{choice(words.STRANGERS)} {INFLECT['past'](choice(words.WORK))} {phrases.spot()}"
        return f"nobody {choice(words.SPEAKING)} about {choice(words.IDEAS)}"

    # --- speech ---

    def dialogue(self, length: int) -> str:
        self.subject = self.hero
        lines = []
        for _ in range(length):
            lines.append(self.speech(self.subject))
            self.subject = self.other
        return " ".join(lines)

    def speech(self, speaker: Character) -> str:
        """One utterance with its tag, by the character given."""
        choice, draw = self.rng.choice, self.rng.random()
        listener = self.friend if speaker is self.hero else self.hero
        name = speaker.name if self.rng.random() < 0.7 else f"the {speaker.trade}"
        adverb = f" {choice(words.SPEECH_ADVERBS)}" if self.rng.random() < 0.3 else ""
        self.last = None
        if draw < 0.35:
            return f'"{sentence(self.asked(listener))[:-1]}?" {choice(words.ASKING_TAGS)} {name}{adverb}.'
        verb = choice(words.SPEAKING_TAGS)
        return f'"{sentence(self.uttered(listener))[:-1]}," {verb} {name}{adverb}.'

    def asked(self, listener: Character) -> str:
        choice, phrases = self.rng.choice, self.phrases
        start = choice(
            (
                "did you",
                "why did you",
                "when did you",
                "must we",
                "will you",
                "can you",
                "shall we",
                "do you want to",
            )
        )
        return choice(
            (
                lambda: f"have you seen {phrases.thing()}",
                lambda: f"where is {phrases.thing()}",
                lambda: f"who lives in {phrases.place()}",
                lambda: f"what do you know about {choice(words.IDEAS)}",
                lambda: f"{start} {choice(words.WORK)}",
                lambda: f"{start} {choice(words.MOTION)} {phrases.path()}",
                lambda: f"are you {choice(words.FEELINGS)}, {listener.name}",
            )
        )()

    def uttered(self, listener: Character) -> str:
        choice, phrases = self.rng.choice, self.phrases
        modal = choice(
            (
                "I will",
                "we must",
                "you should",
                "I cannot",
                "we could",
                "I want to",
                "I never",
                "let us",
                "you may",
            )
        )
        return choice(
            (
                lambda: f"I am {choice(words.FEELINGS)}",
                lambda: f"{modal} {choice(words.WORK)}",
                lambda: f"{modal} {choice(words.MOTION)} {phrases.path()}",
                lambda: f"{modal} {choice(words.HANDLING)} {phrases.thing()}",
                lambda: f"I was thinking about {choice(words.IDEAS)}",
                lambda: f"{choice(words.STRANGERS)} told me about {choice(words.IDEAS)}",
                lambda: f"I saw {phrases.animal()} {phrases.spot()}",
                lambda: f"{phrases.place()} {choice(words.STATES)}",
                lambda: f"it was {listener.name} who {INFLECT['past'](choice(words.WORK))}",
                lambda: f"my {choice(words.KIN)} {INFLECT['past'](choice(words.WORK))}",
            )
        )()

    # --- beginnings and ends ---

    def opening(self) -> str:
        choice, phrases, hero = self.rng.choice, self.phrases, self.hero
        town, adjective = (
            phrases.own_town,
            choice(("young", "old", "poor", "clever", "quiet", "stubborn", "famous", "kind")),
        )
        who = f"{article(adjective)} {hero.trade}"
        return sentence(
            choice(
                (
                    lambda: f"{hero.name} was {who} who lived in {town}",
                    lambda: f"in the town of {town} there lived {who} called {hero.name}",
                    lambda: f"{choice(words.TIMES)} {hero.name} the {hero.trade} {self.action()}",
                    lambda: f"{hero.name} had always wanted to {self.action('base')}",
                    lambda: f"once there was {who} in {town} whose name was {hero.name}",
                    lambda: f"nobody in {town} knew why {hero.name} {self.action()}",
                    lambda: f"{self.scenery()}, and {hero.name} {self.action()}",
                    lambda: f"long ago {who} called {hero.name} {self.action()}",
                    lambda: f"{hero.name} and {self.friend.name} {self.moved()} {phrases.path()}",
                )
            )()
        )

    def moved(self) -> str:
        return INFLECT["past"](self.rng.choice(words.MOTION))

    def closing(self) -> str:
        choice, hero, friend = self.rng.choice, self.hero.name, self.friend.name
        return choice(
            (
                f"After that {hero} was never {choice(words.FEELINGS)} again.",
                f"{hero} and {friend} told the story for many years.",
                f"And that is how {hero} came to {self.phrases.own_town}.",
                f"{friend} never forgot {choice(words.IDEAS)}.",
                "Nobody spoke of it again.",
            )
        )
