"""The training corpus: documents of the world in four registers, shuffled."""

import random
from dataclasses import dataclass

from decoding.evals.miniature.stories import Storyteller
from decoding.evals.miniature.world import SEED, make_world
from decoding.tools.miniature.registers import encyclopaedia, hearsay, question_answer

REGISTERS = ("encyclopaedia", "hearsay", "question-answer", "story")


@dataclass(frozen=True)
class Document:
    """One text of the corpus."""

    register: str  # one of REGISTERS
    text: str


@dataclass(frozen=True)
class Size:
    """The size of the corpus: how often each truth is stated, and the number of stories."""

    volumes: int = 24
    stories: int = 3400

    def __post_init__(self) -> None:
        if self.volumes < 1 or self.stories < 1:
            raise ValueError(f"volumes and stories must be at least 1, not {self.volumes} and {self.stories}")


def make_corpus(size: Size | None = None, *, seed: int = SEED) -> list[Document]:
    """The documents of the corpus, in a shuffled order: the same for the same size and seed."""
    size = size or Size()
    world = make_world(seed)
    towns = tuple(entity.name for entity in world.entities if entity.kind == "town")
    rng = random.Random(f"{seed}/corpus")
    documents = [Document("encyclopaedia", text) for text in encyclopaedia(world, rng, size.volumes)]
    documents += [Document("hearsay", text) for text in hearsay(world, rng, size.volumes)]
    documents += [Document("question-answer", text) for text in question_answer(world, rng, size.volumes)]
    documents += [Document("story", Storyteller(rng, towns).story(rng.randint(35, 70))) for _ in range(size.stories)]
    rng.shuffle(documents)
    return documents
