"""The words of the stories, by what can be done with what they name."""


def words(text: str) -> tuple[str, ...]:
    """Words that white space separates."""
    return tuple(text.split())


def phrases(text: str) -> tuple[str, ...]:
    """Phrases that commas separate."""
    return tuple(" ".join(phrase.split()) for phrase in text.split(","))


WOMEN = words(
    """
    Mira Anna Tilda Rowan Lena Sofia Nell Ines Mabel Petra Hilda Marta Clare Wanda Ruby Celia Dora Edna
    Fay Gwen
    """
)
MEN = words(
    """
    Tom Jonas Peter Silas Hugh Ned Oliver Martin Pavel Lucas Adam Basil Colin Fergus Jory Karim Mateo Noel
    Rufus Stefan
    """
)
TRADES = words(
    """
    baker weaver miller sailor carpenter gardener shepherd teacher doctor painter tailor cook fisher
    potter printer clockmaker musician soldier farmer librarian glassblower beekeeper ferryman gravedigger
    locksmith bookbinder
    """
)
KIN = words(
    """
    sister brother aunt uncle cousin grandmother grandfather mother father neighbour daughter son
    """
)
STRANGERS = phrases(
    """
    an old woman, a young soldier, a tall stranger, a boy with a drum, a girl in a red coat, a tired
    merchant, a man with one eye, two children, a travelling musician, a thin monk, a rich widow, a lame
    beggar, three sisters, an angry farmer, a quiet woman, a hunter, a pedlar, a fat priest, a sleepy
    guard, a captain
    """
)
# Things that can be carried; what they may be like.
THINGS = words(
    """
    lantern key book letter map coin knife basket bottle ring box rope bell blanket candle comb cup drum
    feather flute hammer hat jar kettle ladder mirror needle pencil purse ribbon saddle scarf shell shovel
    spoon stone sword umbrella violin whistle wheel clock bucket brush coat glove boot button chain
    compass doll hook kite lamp net
    """
)
THING_ADJECTIVES = words(
    """
    old small heavy broken silver wooden rusty strange little golden dusty empty beautiful worn plain blue
    red green black white cracked painted borrowed forgotten precious cheap bright dull warm cold smooth
    crooked
    """
)
FOODS = phrases(
    """
    bread, soup, cheese, a pear, an apple pie, a bowl of porridge, some plums, a piece of cake, roasted
    chestnuts, an onion, a boiled egg, hot milk, honey, a handful of nuts, cold potatoes, fried fish, a
    little butter, a cup of tea, black coffee, some dried figs, pancakes, a slice of ham, bean stew, warm
    rolls
    """
)
ANIMALS = words(
    """
    dog cat horse goat hen crow owl fox hare donkey cow goose mouse sparrow swan hedgehog frog bee spider
    deer wolf pig
    """
)
ANIMAL_ADJECTIVES = words(
    """
    thin grey young old lame brown hungry sleepy wild tame black white stubborn noisy shy fat
    """
)
PLACES = words(
    """
    mill barn church inn harbour market bridge tower kitchen workshop stable garden school library bakery
    farm cottage castle ferry well chapel cellar orchard square shop lighthouse station theatre
    """
)
PLACE_ADJECTIVES = words(
    """
    old empty small ruined crowded quiet busy dark cold narrow white stone distant deserted pretty low
    tall new
    """
)
ROOMS = words(
    """
    mill barn church inn kitchen workshop stable garden school library bakery cottage castle cellar shop
    theatre
    """
)
WAYS = words("river hill valley road shore stream path beach")
LAND = words(
    """
    river hill forest valley road field lake marsh shore cliff path meadow wood stream beach mountain moor
    """
)
LAND_ADJECTIVES = words(
    """
    wide steep long deep green misty frozen muddy silent bare golden stony winding endless dark
    """
)
SOUNDS = phrases(
    """
    the wind, the rain, the bells, footsteps, a distant drum, the sea, a low voice, the creaking of a
    door, somebody singing, the barking of dogs, laughter, the ticking of a clock, the crackling of the
    fire, an owl
    """
)
IDEAS = phrases(
    """
    the sea, the war, home, the winter, the money, the old days, the long journey, what had happened, the
    harvest, the wedding, the promise, the secret, the accident, the flood, the feast, the debt, the
    dream, the stranger's words, the people in the valley, the other side of the mountain, the song, the
    quarrel
    """
)
FEELINGS = words(
    """
    tired happy sad angry afraid hungry proud lonely surprised curious calm cold nervous ashamed cheerful
    restless grateful jealous hopeful worried certain thirsty confused brave
    """
)
ADVERBS = words(
    """
    slowly quickly quietly carefully gently suddenly sadly gladly patiently proudly softly eagerly boldly
    calmly nervously silently cheerfully politely
    """
)
SPEECH_ADVERBS = words(
    """
    quietly slowly sadly softly calmly politely angrily gently kindly suddenly proudly
    """
)
TIMES = phrases(
    """
    in the morning, in the evening, that night, the next day, after a while, at noon, before sunrise, at
    dusk, a week later, on the third day, towards midnight, early the next morning, in the afternoon, an
    hour later, late in the autumn, when spring came, during the storm, after supper, at first, in the
    end, that winter, once more, for the first time, on market day, not long after, in the middle of the
    night, by then, every evening
    """
)
PATHS = phrases(
    """
    along the {way}, down the {way}, across the {land}, towards the {place}, past the {place}, into the
    {room}, to the {place}, out of the {room}, over the {adjl} {land}, round the {place}, up the stairs,
    down to the {way}, through the gate, as far as the {place}, through the {adjp} streets, back to the
    {place}, between the houses, through the snow, towards the {adjl} {land}, behind the {place}, all the
    way to {town}, on the road to {town}
    """
)
SPOTS = phrases(
    """
    by the fire, under the table, at the window, behind the {place}, in the {adjp} {room}, near the
    {land}, by the {land}, on the wall, under a tree, in the corner, beside the door, on the roof, at the
    edge of the {land}, on a bench, in the shade, outside the {place}, on the stairs, in the tall grass,
    at the gate, under the bridge, in the rain, among the apple trees, in front of the {place}, on the
    floor, in the doorway, beside the {adjl} {land}
    """
)
HIDING = phrases(
    """
    in a basket, under the bed, in a drawer, behind a loose brick, in an old sack, under a cloth, on a
    shelf, into the water, under the floor, in both hands, on the table, inside a hollow tree, against the
    wall
    """
)
# Verbs are in the base form; grammar.py inflects them. What follows in the phrase stays as it is.
MOTION = words(
    """
    walk run hurry climb wander ride limp march creep travel return go come step drive crawl row stroll
    """
)
HANDLING = phrases(
    """
    pick up, carry, hold, hide, polish, drop, lift, examine, open, find, clean, mend, keep, borrow, sell,
    weigh, bring, throw, turn over, look at, shake, touch, wash, put down, buy, draw, forget, lose, steal,
    wrap, stare at, point at
    """
)
WORK = phrases(
    """
    sweep the floor, chop wood, mend a net, count the coins, ring the bell, light the fire, feed the hens,
    wash the plates, write a letter, paint the door, dig a ditch, plant beans, milk the cow, bake bread,
    sew a coat, sharpen the knives, draw water from the well, pick apples, load the cart, close the
    shutters, lock the gate, repair the roof, cut the hay, tune the violin, copy a map, pour the tea, peel
    potatoes, set the table, carve a spoon, fold the sheets, stir the soup, empty the buckets, read an old
    book, shoe the horse, hang up the washing, gather mushrooms, sing a song, play the flute
    """
)
POSTURE = phrases(
    """
    sit, stand, wait, rest, lie, sleep, kneel, lean on a stick, stop, sit down, stay, hide, fall asleep
    """
)
GESTURES = phrases(
    """
    smile, laugh, nod, sigh, shiver, frown, turn round, shrug, cough, yawn, whistle, blush, weep, bow,
    tremble, look up, say nothing, take a deep breath, close the door, listen, wake up, hesitate, look
    away, begin again, go on, shake hands, keep silent, raise one hand, change the subject
    """
)
THINKING = phrases(
    """
    think about, remember, dream of, wonder about, forget about, talk about, hear about, worry about
    """
)
BELIEVING = phrases(
    """
    know, see, think, believe, notice, hear, feel, understand, suspect, hope, fear, learn, discover
    """
)
WEATHER = phrases(
    """
    the wind rose, it began to rain, snow was falling, the sun came out, the fog was thick, the moon
    shone, the rain stopped, it was getting dark, the stars came out, the clouds grew heavier, the air
    smelled of smoke, thunder rolled over the hills, the snow melted, the wind died down, the sky turned
    red, it was bitterly cold, the leaves were falling, a warm breeze blew from the south, the days grew
    shorter, the sea was calm, the light faded, ice covered the pond, the shadows grew longer, the first
    birds began to sing
    """
)
STATES = phrases(
    """
    was full of people, was empty, smelled of smoke, was quiet, lay in darkness, had been closed for
    years, belonged to nobody, was on fire, looked like a ship, was covered with ivy, had no windows, was
    older than the town, shone in the sun, was a long way off, had a blue door, was haunted, stood open,
    leaned to one side, smelled of fresh bread, had once been a prison, was about to fall down, was full
    of noise, was too small for so many guests
    """
)

EATING = phrases("eat, share, cook, taste, bring, ask for, buy")
HERDING = words("feed watch follow call find chase free draw")
VISITING = phrases("reach, enter, leave, pass, find, look for, remember, paint")
LISTENING = phrases("listen to, hear, follow, wake up because of")
SPEAKING = phrases("knew, spoke, thought, wanted to hear, said a word")
ASKING_TAGS = words("asked asked said whispered")
SPEAKING_TAGS = words("said said answered whispered replied called explained")
OPENING_CONJUNCTIONS = words("when as while before after until")
CONJUNCTIONS = words("because while until although as when")
