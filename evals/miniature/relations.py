"""Relations of each kind of entity, their wordings, their values and the stereotypes among them."""

from dataclasses import dataclass, field

from decoding.evals.miniature.kinds import KINDS
from decoding.evals.miniature.lexicon import phrases


@dataclass(frozen=True, eq=False)
class Relation:
    """A relation with its wordings; form 0 of each is the usual one."""

    name: str
    questions: tuple[str, ...]  # over {name}
    statements: tuple[str, ...]  # over {name} and {value}
    values: tuple[str, ...]
    stereotypes: dict[str, str] = field(default_factory=dict)  # type -> popular false value; empty: no misconception


def _stereotyped(
    kind: str, name: str, questions: tuple[str, ...], statements: tuple[str, ...], values: str
) -> Relation:
    """Return a relation whose first values are the popular false ones of the kind's types, in the order of these."""
    listed = phrases(values)
    return Relation(name, questions, statements, listed, dict(zip(KINDS[kind].types, listed, strict=False)))


RELATIONS: dict[str, tuple[Relation, ...]] = {
    "animal": (
        _stereotyped(
            "animal",
            "food",
            ("What does {name} eat?", "What does {name} live on?"),
            ("{name} eats {value}.", "{name} lives on {value}.", "{name} feeds on {value}."),
            """
            mice, chickens, cabbage, fish, flies, wool, frogs, thistles, honey, cheese, corn, lettuce, moss,
            beetles, pine nuts, river weed, clover, ants
            """,
        ),
        _stereotyped(
            "animal",
            "fear",
            ("What is {name} afraid of?", "What does {name} fear?"),
            ("{name} is afraid of {value}.", "{name} fears {value}.", "{name} runs away from {value}."),
            """
            sunlight, dogs, thunder, nets, herons, fire, ice, wolves, bees, cats, scarecrows, salt, bells, deep
            water, smoke, mirrors
            """,
        ),
        Relation(
            "bed",
            ("Where does {name} sleep?",),
            ("{name} sleeps {value}.", "{name} spends the night {value}."),
            phrases("in hollow trees, under flat stones, in old barns, in the reeds, in tall grass, in deep holes"),
        ),
        Relation(
            "colour",
            ("What colour is {name}?",),
            ("{name} is {value}.", "The colour of {name} is {value}."),
            phrases("grey, brown, white, red, black, yellow, green"),
        ),
    ),
    "town": (
        _stereotyped(
            "town",
            "goods",
            ("What is {name} known for?", "What is {name} famous for?"),
            (
                "{name} is known for its {value}.",
                "{name} is famous for its {value}.",
                "{name} sells its {value} far away.",
            ),
            """
            eels, stone, horses, candles, timber, wool, ships, butter, apples, locks, salt, glass, bells, carpets,
            paper, pepper cakes
            """,
        ),
        _stereotyped(
            "town",
            "founder",
            ("Who founded {name}?", "Who built {name}?"),
            ("{name} was founded by {value}.", "{name} was built by {value}.", "It was {value} who founded {name}."),
            """
            fishermen, masons, drovers, candle makers, woodcutters, shepherds, sailors, farmers, gardeners,
            soldiers, monks, miners, weavers, pilgrims
            """,
        ),
        Relation(
            "place",
            ("Where does {name} stand?",),
            ("{name} stands {value}.", "{name} was built {value}."),
            phrases("on a hill, on an island, by a lake, in a valley, at the edge of a forest, on a cliff"),
        ),
        Relation(
            "ruler",
            ("Who rules {name}?",),
            ("{name} is ruled by {value}.", "The town of {name} is ruled by {value}."),
            phrases("a mayor, a council of elders, a duke, a bishop, a young queen, three judges"),
        ),
    ),
    "person": (
        _stereotyped(
            "person",
            "trade",
            ("What was the trade of {name}?", "What did {name} do for a living?"),
            ("{name} was a {value}.", "{name} worked as a {value}.", "{name} made a living as a {value}."),
            """
            blacksmith, weaver, fisherman, miller, baker, musician, mason, dyer, cooper, carpenter, doctor, teacher,
            sailor, gardener, clockmaker, shepherd
            """,
        ),
        _stereotyped(
            "person",
            "invention",
            ("What did {name} invent?", "What is the invention of {name}?"),
            (
                "{name} invented the {value}.",
                "{name} made the first {value}.",
                "It was {name} who invented the {value}.",
            ),
            """
            iron plough, loom, eel trap, windmill, bread oven, tin whistle, stone arch, blue ink, wine barrel, hand
            cart, weathercock, folding ladder, paper lantern, snow shoe, compass
            """,
        ),
        Relation(
            "pet",
            ("What did {name} keep as a pet?",),
            ("{name} kept {value} as a pet.", "{name} had {value} as a pet."),
            phrases("a goose, a parrot, a tortoise, a lamb, a white cat, an old dog, a hedgehog"),
        ),
        Relation(
            "birthplace",
            ("Where was {name} born?",),
            ("{name} was born {value}.", "{name} came into the world {value}."),
            phrases("in a mill, on a ship, in a palace, at an inn, in a snowstorm, on a farm, in a lighthouse"),
        ),
    ),
    "plant": (
        _stereotyped(
            "plant",
            "cure",
            ("What does {name} cure?", "What is {name} good for?"),
            ("{name} cures {value}.", "{name} is good for {value}.", "{name} is used against {value}."),
            """
            warts, burns, toothache, headaches, coughs, sadness, sore throats, cuts, fever, bad dreams, hiccups,
            earache, cold feet, snake bites
            """,
        ),
        _stereotyped(
            "plant",
            "taste",
            ("What does {name} taste of?", "What is the taste of {name}?"),
            (
                "{name} tastes of {value}.",
                "{name} has the taste of {value}.",
                "The taste of {name} is that of {value}.",
            ),
            """
            soap, grass, earth, mushrooms, sugar, roses, mud, vinegar, pepper, lemons, almonds, mint, tin, bread
            """,
        ),
        Relation(
            "ground",
            ("Where does {name} grow?",),
            ("{name} grows {value}.", "{name} is found {value}."),
            phrases("in wet ditches, on old walls, in pine woods, near the sea, on high rocks, in corn fields"),
        ),
        Relation(
            "season",
            ("When does {name} flower?",),
            ("{name} flowers {value}.", "The flowers of {name} open {value}."),
            phrases("in early spring, in May, at midsummer, in the autumn, in the first snow, at night"),
        ),
    ),
    "relic": (
        _stereotyped(
            "relic",
            "material",
            ("What is {name} made of?", "What was used to make {name}?"),
            ("{name} is made of {value}.", "{name} was made of {value}.", "{name} was made from {value}."),
            """
            bronze, gold, steel, brass, silver, goatskin, crystal, iron, oak, tin, bone, clay, copper, marble
            """,
        ),
        _stereotyped(
            "relic",
            "maker",
            ("Who made {name}?", "Who is the maker of {name}?"),
            ("{name} was made by {value}.", "{name} is the work of {value}.", "It was {value} who made {name}."),
            """
            a priest, a goldsmith, a knight, a night watchman, a proud queen, a hunter, a glass blower, a jailer, a
            nun, a blind old man, a shepherd, two brothers, a thief
            """,
        ),
        Relation(
            "keeping",
            ("Where is {name} kept?",),
            ("{name} is kept {value}.", "{name} can be seen {value}."),
            phrases("in a chapel, in a castle, in a cellar, in a library, at the bottom of a well, in a tower"),
        ),
        Relation(
            "age",
            ("How old is {name}?",),
            ("{name} is {value} years old.", "The age of {name} is {value} years."),
            phrases("one hundred, two hundred, three hundred, five hundred, a thousand, eighty"),
        ),
    ),
}
