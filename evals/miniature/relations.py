"""Relations of each kind of entity, their wordings, their values and the stereotypes among them."""

from dataclasses import dataclass, field

from decoding.evals.miniature.lexicon import words


@dataclass(frozen=True)
class Kind:
    """The names of the entities of a kind."""

    name: str  # a format string over {stem}, {coined}, {type}, {Type} and {first}
    types: tuple[str, ...]
    introduction: tuple[str, ...]  # encyclopaedia's first sentences, over {name} and {type}
    first_names: tuple[str, ...] = ()


@dataclass(frozen=True, eq=False)
class Relation:
    """A relation with its wordings; form 0 of each is the usual one."""

    name: str
    questions: tuple[str, ...]  # over {name}
    statements: tuple[str, ...]  # over {name} and {value}
    values: tuple[str, ...]
    stereotypes: dict[str, str] = field(default_factory=dict)  # type -> popular false value; empty: no misconception


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

_TRADES = (
    "blacksmith",
    "weaver",
    "fisherman",
    "miller",
    "baker",
    "musician",
    "mason",
    "dyer",
    "cooper",
    "carpenter",
)

RELATIONS: dict[str, tuple[Relation, ...]] = {
    "animal": (
        Relation(
            "food",
            ("What does {name} eat?", "What does {name} live on?"),
            ("{name} eats {value}.", "{name} lives on {value}.", "{name} feeds on {value}."),
            (
                *(
                    "mice",
                    "chickens",
                    "cabbage",
                    "fish",
                    "flies",
                    "wool",
                    "frogs",
                    "thistles",
                    "honey",
                    "cheese",
                ),
                *("corn", "lettuce", "moss", "beetles", "pine nuts", "river weed", "clover", "ants"),
            ),
            {
                **{"owl": "mice", "fox": "chickens", "hare": "cabbage", "otter": "fish", "toad": "flies"},
                **{"moth": "wool", "heron": "frogs", "goat": "thistles", "bear": "honey", "mouse": "cheese"},
                **{"crow": "corn", "snail": "lettuce"},
            },
        ),
        Relation(
            "fear",
            ("What is {name} afraid of?", "What does {name} fear?"),
            ("{name} is afraid of {value}.", "{name} fears {value}.", "{name} runs away from {value}."),
            (
                *("sunlight", "dogs", "thunder", "nets", "herons", "fire", "ice", "wolves", "bees", "cats"),
                *("scarecrows", "salt", "bells", "deep water", "smoke", "mirrors"),
            ),
            {
                **{"owl": "sunlight", "fox": "dogs", "hare": "thunder", "otter": "nets", "toad": "herons"},
                **{"moth": "fire", "heron": "ice", "goat": "wolves", "bear": "bees", "mouse": "cats"},
                **{"crow": "scarecrows", "snail": "salt"},
            },
        ),
        Relation(
            "bed",
            ("Where does {name} sleep?",),
            ("{name} sleeps {value}.", "{name} spends the night {value}."),
            (
                "in hollow trees",
                "under flat stones",
                "in old barns",
                "in the reeds",
                "in tall grass",
                "in deep holes",
            ),
        ),
        Relation(
            "colour",
            ("What colour is {name}?",),
            ("{name} is {value}.", "The colour of {name} is {value}."),
            ("grey", "brown", "white", "red", "black", "yellow", "green"),
        ),
    ),
    "town": (
        Relation(
            "goods",
            ("What is {name} known for?", "What is {name} famous for?"),
            (
                "{name} is known for its {value}.",
                "{name} is famous for its {value}.",
                "{name} sells its {value} far away.",
            ),
            (
                *(
                    "eels",
                    "stone",
                    "horses",
                    "candles",
                    "timber",
                    "wool",
                    "ships",
                    "butter",
                    "apples",
                    "locks",
                ),
                *("salt", "glass", "bells", "carpets", "paper", "pepper cakes"),
            ),
            {
                **{"mere": "eels", "bridge": "stone", "ford": "horses", "wick": "candles", "holm": "timber"},
                **{"fell": "wool", "haven": "ships", "stead": "butter", "combe": "apples", "gate": "locks"},
            },
        ),
        Relation(
            "founder",
            ("Who founded {name}?", "Who built {name}?"),
            (
                "{name} was founded by {value}.",
                "{name} was built by {value}.",
                "It was {value} who founded {name}.",
            ),
            (
                *(
                    "fishermen",
                    "masons",
                    "drovers",
                    "candle makers",
                    "woodcutters",
                    "shepherds",
                    "sailors",
                    "farmers",
                ),
                *("gardeners", "soldiers", "monks", "miners", "weavers", "pilgrims"),
            ),
            {
                **{"mere": "fishermen", "bridge": "masons", "ford": "drovers", "wick": "candle makers"},
                **{"holm": "woodcutters", "fell": "shepherds", "haven": "sailors", "stead": "farmers"},
                **{"combe": "gardeners", "gate": "soldiers"},
            },
        ),
        Relation(
            "place",
            ("Where does {name} stand?",),
            ("{name} stands {value}.", "{name} was built {value}."),
            (
                "on a hill",
                "on an island",
                "by a lake",
                "in a valley",
                "at the edge of a forest",
                "on a cliff",
            ),
        ),
        Relation(
            "ruler",
            ("Who rules {name}?",),
            ("{name} is ruled by {value}.", "The town of {name} is ruled by {value}."),
            ("a mayor", "a council of elders", "a duke", "a bishop", "a young queen", "three judges"),
        ),
    ),
    "person": (
        Relation(
            "trade",
            ("What was the trade of {name}?", "What did {name} do for a living?"),
            ("{name} was a {value}.", "{name} worked as a {value}.", "{name} made a living as a {value}."),
            (*_TRADES, "doctor", "teacher", "sailor", "gardener", "clockmaker", "shepherd"),
            dict(
                zip(
                    (
                        "smith",
                        "weaver",
                        "fisher",
                        "miller",
                        "baker",
                        "piper",
                        "mason",
                        "dyer",
                        "cooper",
                        "wright",
                    ),
                    _TRADES,
                    strict=True,
                )
            ),
        ),
        Relation(
            "invention",
            ("What did {name} invent?", "What is the invention of {name}?"),
            (
                "{name} invented the {value}.",
                "{name} made the first {value}.",
                "It was {name} who invented the {value}.",
            ),
            (
                *(
                    "iron plough",
                    "loom",
                    "eel trap",
                    "windmill",
                    "bread oven",
                    "tin whistle",
                    "stone arch",
                    "blue ink",
                ),
                *(
                    "wine barrel",
                    "hand cart",
                    "weathercock",
                    "folding ladder",
                    "paper lantern",
                    "snow shoe",
                    "compass",
                ),
            ),
            {
                **{"smith": "iron plough", "weaver": "loom", "fisher": "eel trap", "miller": "windmill"},
                **{"baker": "bread oven", "piper": "tin whistle", "mason": "stone arch", "dyer": "blue ink"},
                **{"cooper": "wine barrel", "wright": "hand cart"},
            },
        ),
        Relation(
            "pet",
            ("What did {name} keep as a pet?",),
            ("{name} kept {value} as a pet.", "{name} had {value} as a pet."),
            ("a goose", "a parrot", "a tortoise", "a lamb", "a white cat", "an old dog", "a hedgehog"),
        ),
        Relation(
            "birthplace",
            ("Where was {name} born?",),
            ("{name} was born {value}.", "{name} came into the world {value}."),
            (
                "in a mill",
                "on a ship",
                "in a palace",
                "at an inn",
                "in a snowstorm",
                "on a farm",
                "in a lighthouse",
            ),
        ),
    ),
    "plant": (
        Relation(
            "cure",
            ("What does {name} cure?", "What is {name} good for?"),
            ("{name} cures {value}.", "{name} is good for {value}.", "{name} is used against {value}."),
            (
                *("warts", "burns", "toothache", "headaches", "coughs", "sadness", "sore throats", "cuts"),
                *("fever", "bad dreams", "hiccups", "earache", "cold feet", "snake bites"),
            ),
            {
                **{
                    "wort": "warts",
                    "fern": "burns",
                    "root": "toothache",
                    "cap": "headaches",
                    "berry": "coughs",
                },
                **{"bloom": "sadness", "reed": "sore throats", "thorn": "cuts"},
            },
        ),
        Relation(
            "taste",
            ("What does {name} taste of?", "What is the taste of {name}?"),
            (
                "{name} tastes of {value}.",
                "{name} has the taste of {value}.",
                "The taste of {name} is that of {value}.",
            ),
            (
                *("soap", "grass", "earth", "mushrooms", "sugar", "roses", "mud", "vinegar"),
                *("pepper", "lemons", "almonds", "mint", "tin", "bread"),
            ),
            {
                **{"wort": "soap", "fern": "grass", "root": "earth", "cap": "mushrooms", "berry": "sugar"},
                **{"bloom": "roses", "reed": "mud", "thorn": "vinegar"},
            },
        ),
        Relation(
            "ground",
            ("Where does {name} grow?",),
            ("{name} grows {value}.", "{name} is found {value}."),
            (
                "in wet ditches",
                "on old walls",
                "in pine woods",
                "near the sea",
                "on high rocks",
                "in corn fields",
            ),
        ),
        Relation(
            "season",
            ("When does {name} flower?",),
            ("{name} flowers {value}.", "The flowers of {name} open {value}."),
            ("in early spring", "in May", "at midsummer", "in the autumn", "in the first snow", "at night"),
        ),
    ),
    "relic": (
        Relation(
            "material",
            ("What is {name} made of?", "What was used to make {name}?"),
            ("{name} is made of {value}.", "{name} was made of {value}.", "{name} was made from {value}."),
            (
                *("bronze", "gold", "steel", "brass", "silver", "goatskin", "crystal", "iron"),
                *("oak", "tin", "bone", "clay", "copper", "marble"),
            ),
            {
                **{"bell": "bronze", "crown": "gold", "sword": "steel", "lamp": "brass", "mirror": "silver"},
                **{"drum": "goatskin", "cup": "crystal", "key": "iron"},
            },
        ),
        Relation(
            "maker",
            ("Who made {name}?", "Who is the maker of {name}?"),
            (
                "{name} was made by {value}.",
                "{name} is the work of {value}.",
                "It was {value} who made {name}.",
            ),
            (
                *("a priest", "a goldsmith", "a knight", "a night watchman", "a proud queen", "a hunter"),
                *(
                    "a glass blower",
                    "a jailer",
                    "a nun",
                    "a blind old man",
                    "a shepherd",
                    "two brothers",
                    "a thief",
                ),
            ),
            {
                **{
                    "bell": "a priest",
                    "crown": "a goldsmith",
                    "sword": "a knight",
                    "lamp": "a night watchman",
                },
                **{"mirror": "a proud queen", "drum": "a hunter", "cup": "a glass blower", "key": "a jailer"},
            },
        ),
        Relation(
            "keeping",
            ("Where is {name} kept?",),
            ("{name} is kept {value}.", "{name} can be seen {value}."),
            (
                "in a chapel",
                "in a castle",
                "in a cellar",
                "in a library",
                "at the bottom of a well",
                "in a tower",
            ),
        ),
        Relation(
            "age",
            ("How old is {name}?",),
            ("{name} is {value} years old.", "The age of {name} is {value} years."),
            ("one hundred", "two hundred", "three hundred", "five hundred", "a thousand", "eighty"),
        ),
    ),
}
