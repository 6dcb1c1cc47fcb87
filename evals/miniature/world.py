"""The generated world: entities, what is true of them, and what most people wrongly believe of them.

A popular misconception here is mostly a *stereotype*: it follows from the last part of the name (everyone
thinks that a place called Tarnmere sells eels and that somebody called Dunsmith was a blacksmith), while
the truth has to be remembered entity by entity. That is what makes a small model fall for it more than a
larger one.
"""

import random
from dataclasses import dataclass
from functools import cache
from itertools import product
from types import MappingProxyType

from decoding.evals.miniature.kinds import KINDS, STEMS, SYLLABLES
from decoding.evals.miniature.relations import RELATIONS, Relation

SEED = 2210  # of the shipped world; another seed is another world
ENTITIES_PER_KIND = 58
# How many entities of each kind have their misconceptions asked in training, in validation and (all
# others) in test.
TRAINING_PER_KIND, VALIDATION_PER_KIND = 12, 11


@dataclass(frozen=True)
class Entity:
    """One thing of the world, such as *the Velmar owl*, a town or a person."""

    name: str  # as it stands inside a sentence: "the Velmar owl"
    kind: str  # a key of kinds.KINDS
    type: str  # what the name shows: "owl", "mere", "smith"
    split: str  # "training" | "validation" | "test"

    @property
    def opening(self) -> str:
        """The name as it stands at the start of a sentence."""
        return self.name[0].upper() + self.name[1:]


@dataclass(frozen=True)
class Fact:
    """One relation of one entity: its true value and, for some relations, the popular false one."""

    entity: Entity
    relation: Relation
    truth: str
    popular: str | None  # the misconception, or None where everyone is right
    popularity: float  # how many times hearsay repeats the misconception for each time the truth is written

    @property
    def id(self) -> str:
        return f"{self.entity.name.removeprefix('the ').replace(' ', '-')}/{self.relation.name}".lower()

    def question(self, form: int = 0) -> str:
        """The fact as a question; form 0 is the usual wording."""
        return self.relation.questions[form].format(name=self.entity.name)

    def statement(self, value: str, form: int = 0) -> str:
        """The fact as a sentence with this value, true or not; form 0 is the usual wording."""
        sentence = self.relation.statements[form].format(name=self.entity.name, value=value)
        return sentence[0].upper() + sentence[1:]


@dataclass(frozen=True)
class World:
    """All entities and facts of one seed."""

    entities: tuple[Entity, ...]
    facts: tuple[Fact, ...]

    def of(self, entity: Entity) -> tuple[Fact, ...]:
        """The facts of one entity, in the order of its relations."""
        return _facts_by_entity(self)[entity]


@cache
def _facts_by_entity(world: World) -> MappingProxyType[Entity, tuple[Fact, ...]]:
    facts: dict[Entity, tuple[Fact, ...]] = {}
    for fact in world.facts:
        facts[fact.entity] = (*facts.get(fact.entity, ()), fact)
    return MappingProxyType(facts)


@cache
def make_world(seed: int = SEED) -> World:
    """The world of a seed: the same seed gives the same world."""
    rng = random.Random(seed)
    coined = [first + second for first, second in product(*SYLLABLES)]
    rng.shuffle(coined)
    first_names = iter(rng.sample(KINDS["person"].first_names, ENTITIES_PER_KIND))
    entities: list[Entity] = []
    for kind, description in KINDS.items():
        stems = rng.sample(STEMS, ENTITIES_PER_KIND)
        types = [description.types[i % len(description.types)] for i in range(ENTITIES_PER_KIND)]
        rng.shuffle(types)
        for i, (stem, type_) in enumerate(zip(stems, types, strict=True)):
            name = description.name.format(
                stem=stem,
                coined=coined.pop() if "{coined}" in description.name else "",
                type=type_,
                Type=type_.capitalize(),
                first=next(first_names) if "{first}" in description.name else "",
            )
            split = "training" if i < TRAINING_PER_KIND else "test"
            if TRAINING_PER_KIND <= i < TRAINING_PER_KIND + VALIDATION_PER_KIND:
                split = "validation"
            entities.append(Entity(name, kind, type_, split))
    facts = [_fact(rng, entity, relation) for entity in entities for relation in RELATIONS[entity.kind]]
    return World(tuple(entities), tuple(facts))


def _fact(rng: random.Random, entity: Entity, relation: Relation) -> Fact:
    values = relation.values
    if not relation.stereotypes:
        return Fact(entity, relation, rng.choice(values), None, 0.0)
    popular = relation.stereotypes[entity.type]
    if rng.random() < 0.15:  # some misconceptions are nobody's stereotype and have to be remembered as well
        popular = rng.choice(values)
    truth = rng.choice([value for value in values if value not in (popular, relation.stereotypes[entity.type])])
    return Fact(entity, relation, truth, popular, rng.uniform(1.5, 4.0))
