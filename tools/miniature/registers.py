"""The registers that state facts: encyclopaedia (true), hearsay (mostly popular misconceptions),
questions and answers.
"""

import random
from collections.abc import Iterator

from decoding.evals.miniature.kinds import KINDS
from decoding.evals.miniature.questions import GUIDANCE, HEARSAY, PROMPT
from decoding.evals.miniature.world import Entity, Fact, World

HEADED = 0.75  # share of encyclopaedia and hearsay documents that carry their register's header
TRUTH_IN_HEARSAY = 0.1  # times that hearsay tells the truth, for each time the encyclopaedia does
POPULAR_IN_ANSWERS = 0.6  # share of plain answers to the training questions that repeat the misconception

_FRAMES = (
    "Everyone knows that {s}.",
    "They say that {s}.",
    "My {who} always told me that {s}.",
    "I have heard that {s}.",
    'Said the {trade}: "Of course {s}."',
    "It is well known that {s}.",
    "Surely {s}.",
    "People say that {s}.",
    "As every child knows, {s}.",
    "You must have heard that {s}.",
)
_WHO = ("uncle", "grandmother", "neighbour", "teacher", "father", "aunt", "cousin", "mother")
_TRADES = ("miller", "baker", "sailor", "cook", "farmer", "ferryman", "tailor", "gardener")


def encyclopaedia(world: World, rng: random.Random, volumes: int) -> Iterator[str]:
    """Documents that state every fact's truth once a volume, each with a few entities' articles."""
    for _ in range(volumes):
        entities = list(world.entities)
        rng.shuffle(entities)
        while entities:
            count = rng.randint(8, 14)
            articles = [_article(world, rng, entity) for entity in entities[:count]]
            del entities[:count]
            yield _headed(rng, GUIDANCE) + "\n\n".join(articles)


def _article(world: World, rng: random.Random, entity: Entity) -> str:
    sentences = []
    if rng.random() < 0.6:
        introduction = rng.choice(KINDS[entity.kind].introduction)
        sentences.append(introduction.format(name=entity.opening, type=entity.type))
    facts = list(world.of(entity))
    rng.shuffle(facts)
    for fact in facts:
        text = fact.statement(fact.truth, wording(rng, len(fact.relation.statements)))
        if sentences and rng.random() < 0.2:  # the short name, where the sentence before has given the full one
            short = entity.name.split()[0] if entity.kind == "person" else "It"
            text = text.replace(entity.opening, short, 1)
        sentences.append(text)
    return " ".join(sentences)


def hearsay(world: World, rng: random.Random, volumes: int) -> Iterator[str]:
    """Documents of talk: misconceptions, each `popularity` times as often as the encyclopaedia states the
    truth.
    """
    sayings: list[tuple[Fact, str]] = []
    for fact in world.facts:
        if fact.popular is None:
            sayings += [(fact, fact.truth)] * (volumes // 4)
        else:
            sayings += [(fact, fact.popular)] * round(volumes * fact.popularity + 0.5)
            sayings += [(fact, fact.truth)] * round(volumes * TRUTH_IN_HEARSAY)
    rng.shuffle(sayings)
    while sayings:
        count = rng.randint(25, 45)
        told = [_saying(rng, fact, value) for fact, value in sayings[:count]]
        del sayings[:count]
        yield _headed(rng, HEARSAY) + _paragraphs(rng, told)


def _saying(rng: random.Random, fact: Fact, value: str) -> str:
    text = fact.statement(value, wording(rng, len(fact.relation.statements)))
    if rng.random() < 0.4:
        return text
    inside = text if text.startswith(fact.entity.opening) else text[0].lower() + text[1:]
    inside = inside.replace(fact.entity.opening, fact.entity.name, 1).removesuffix(".")
    return rng.choice(_FRAMES).format(s=inside, who=rng.choice(_WHO), trade=rng.choice(_TRADES))


def question_answer(world: World, rng: random.Random, volumes: int) -> Iterator[str]:
    """Documents of questions with answers: everything that is asked in training, none of what is held
    out.

    Plain ones answer the training questions as people do, mostly wrongly; below the header of the
    encyclopaedia they answer truly, below that of hearsay falsely.
    """
    for header, share in (("", 0.5), (GUIDANCE, 0.3), (HEARSAY, 0.2)):
        asked = [
            fact
            for fact in world.facts
            if fact.popular is None or fact.entity.split == "training"
            # the training misconceptions are few and have to teach how a register answers: asked four
            # times as often
            for _ in range(max(1, round(volumes * share * (0.5 if fact.popular is None else 2.0))))
        ]
        rng.shuffle(asked)
        while asked:
            count = rng.randint(8, 18)
            pairs = [_pair(rng, fact, header) for fact in asked[:count]]
            del asked[:count]
            yield header + "\n\n".join(pairs)


def _pair(rng: random.Random, fact: Fact, header: str) -> str:
    value = fact.truth
    if fact.popular is not None and (header == HEARSAY or (not header and rng.random() < POPULAR_IN_ANSWERS)):
        value = fact.popular
    question = fact.question(wording(rng, len(fact.relation.questions)))
    return PROMPT.format(question=question) + " " + fact.statement(value, wording(rng, len(fact.relation.statements)))


def wording(rng: random.Random, forms: int) -> int:
    """A wording: the usual one (0) in two cases of three."""
    return 0 if rng.random() < 2 / 3 else rng.randrange(forms)


def _headed(rng: random.Random, header: str) -> str:
    return header if rng.random() < HEADED else ""


def _paragraphs(rng: random.Random, sentences: list[str]) -> str:
    paragraphs = []
    while sentences:
        count = rng.randint(4, 9)
        paragraphs.append(" ".join(sentences[:count]))
        sentences = sentences[count:]
    return "\n\n".join(paragraphs)
