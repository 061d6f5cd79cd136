# ruff: noqa: SIM905 - word lists are easier to read as one string than as quoted items
"""The reference's text: a seeded generator of stories, tasks and questions in a closed world.

Everything comes from one 64-bit linear congruential generator in plain Python integers, so the
bytes are the same on every machine and every Python version. Each document has its own seed,
made from (split, kind, index): document 17 is the same whether or not documents 0-16 were made.

**How the splits are kept apart.** A hash of a sentence's own text decides its split
(`split_of_sentence`), and a document of a split is built only from sentences of that split: a
sentence of the wrong split is drawn again, with other words. So no sentence of the evaluation
split can occur in another split, whatever the number of documents and whatever the seed. It holds
for each sentence of a story or a letter, each summary, each question, each right answer,
each English and each German sentence and each sentence that describes a record. A record is
covered by its description, which is a function of it.

Documents (a blank line after each)::

    Mia had a big red kite. ... Mia felt happy.
    Question: Where did Mia lose the kite?
    Answer: Mia lost it in the park.

    Mia had a big red kite. ... Mia felt happy.
    Summary: Mia lost a red kite in the park, but Ben found it.

    English: Yesterday, the old baker bought a red apple.
    German: Gestern kaufte der alte Bäcker einen roten Apfel.

    Record: name: Mia | job: baker | city: Bern | pet: black cat
    Text: Mia is a baker from Bern. She has a black cat.

A prompt stops after the colon of its last label (`Summary:`, `German:`, `Text:`, `Answer:`), and
the target is the rest of that line: one space, the sentence, a newline.
"""

import re
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from hashlib import blake2b
from typing import Literal, TypedDict, TypeVar

Split = Literal["train", "calibration", "evaluation"]
Task = Literal["translation", "description", "summary"]
Domain = Literal["in", "out"]

SPLITS: tuple[Split, ...] = ("train", "calibration", "evaluation")
TASKS: tuple[Task, ...] = ("translation", "description", "summary")
CHOICES = 4

T = TypeVar("T")

# Of 8 hash classes: 4 are train, 2 calibration, 2 evaluation.
_CLASSES: tuple[Split, ...] = (
    "train", "train", "train", "train", "calibration", "calibration", "evaluation", "evaluation",
)  # fmt: skip
_TRIES = 400  # redraws of one sentence before the whole document is begun again


class TaskItem(TypedDict):
    """One text-to-text item: `prompt + " " + target + "\\n"` is a document of the corpus."""

    prompt: str
    target: str


class Question(TypedDict):
    """One multiple-choice item; `choices[answer]` is the only right one.

    `context` is the story, `question` the question's own words, and `prompt` the exact text to
    condition on (story, `Question:` line, `Answer:`). A choice follows after one space.
    """

    context: str
    question: str
    prompt: str
    choices: list[str]
    answer: int


class Random:
    """A 64-bit linear congruential generator (Knuth's MMIX constants); its high bits are used."""

    def __init__(self, *seed: object) -> None:
        digest = blake2b("/".join(map(str, seed)).encode(), digest_size=8).digest()
        self.state = int.from_bytes(digest, "little")

    def below(self, n: int) -> int:
        """A whole number in [0, n), for n up to 2**20."""
        self.state = state = (
            self.state * 6364136223846793005 + 1442695040888963407
        ) & 0xFFFFFFFFFFFFFFFF
        return ((state >> 32) * n) >> 32

    def choose(self, values: Sequence[T]) -> T:
        """One of `values`, each equally likely."""
        return values[self.below(len(values))]

    def shuffled(self, values: Sequence[T]) -> list[T]:
        """A new list of `values` in random order."""
        rest = list(values)
        return [rest.pop(self.below(len(rest))) for _ in range(len(rest))]


def split_of_sentence(sentence: str) -> Split:
    """The only split in which `sentence` (without surrounding space) may occur."""
    return _CLASSES[blake2b(sentence.encode(), digest_size=1).digest()[0] & 7]


class _StuckError(Exception):
    """No allowed wording was found: begin the document again with other facts."""


# --------------------------------------------------------------------------------------- lexicon

_WOMEN = "Anna Mia Emma Lena Clara Julia Nora Sofia Ida Ella Lucy Rosa".split()
_MEN = "Ben Tom Paul Max Leo Jan Felix Oscar Emil Hugo Noah Karl".split()
_FEMALE = frozenset(_WOMEN)

_POOLS: dict[str, list[str]] = {
    "person": _WOMEN + _MEN,
    "colour": "red blue green yellow white black brown pink grey golden".split(),
    "size": "big small old new heavy round shiny soft".split(),
    "thing": (
        "kite ball hat coat book lamp clock drum boat bag cup box bell key ring scarf "
        "basket bottle bicycle mirror flute doll robot car"
    ).split(),
    "place": (
        "park garden forest library museum school market castle harbour theatre bakery "
        "station church village barn tower"
    ).split(),
    "day": "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split(),
    "part": "morning afternoon evening".split(),
    "relative": "mother father brother sister uncle aunt grandmother grandfather".split(),
    "relation": "friend neighbour cousin teacher".split(),
    "spot": [
        f"{where} the {what}"
        for where in ("under", "behind", "near")
        for what in "bench tree bed cart bridge table gate stairs".split()
    ],
    "feeling": "happy proud glad thankful calm surprised cheerful".split(),
    "reason": "tired hungry busy sleepy cold bored ill".split(),
    "mood": "sad angry worried unhappy lonely nervous".split(),
    "how": "at once|gladly|quickly|slowly|without a word".split("|"),
    "job": (
        "baker doctor farmer painter teacher driver gardener singer writer nurse pilot sailor"
    ).split(),
    "tool": "hammer needle brush rope wire tape nail".split(),
    "food": "bread soup cheese cake honey rice tea milk butter fruit".split(),
    "number": "two three four five six seven eight nine ten".split(),
    "weather": "sunny rainy windy snowy cloudy warm cold".split(),
    "season": "spring summer autumn winter".split(),
    "animal": "cat dog horse rabbit goat duck parrot sheep".split(),
    "trait": "kind clever shy brave quiet funny gentle".split(),
    "manner": (
        "all day|for an hour|for a long time|again and again|until the evening|until it was dark"
    ).split("|"),
    "soon": "soon|later|then|at last|in the end|after a while|one hour later|that night".split("|"),
    "very": "very|really|so|quite".split("|"),
    "city": "Bern Paris Rome Oslo Vienna London Madrid Dublin Prague Berlin".split(),
    "hobby": "chess music football dancing painting reading swimming cooking".split(),
}

# ------------------------------------------------------------------------------- template engine

_SLOT = re.compile(r"\{([^}]+)\}")
_ARTICLE = re.compile(r"\b([Aa]) (?=[aeiou])")
_Facts = dict[str, str]


@cache
def _parts(template: str) -> tuple[str, ...]:
    """Literal text at even places, slot names at odd ones."""
    return tuple(_SLOT.split(template))


def _bind_person(facts: _Facts, key: str, name: str) -> None:
    """Bind a name and the pronouns that go with it."""
    female = name in _FEMALE
    facts[key] = name
    facts[key + ".he"] = "she" if female else "he"
    facts[key + ".his"] = "her" if female else "his"
    facts[key + ".him"] = "her" if female else "him"
    facts[key + ".child"] = "girl" if female else "boy"


def _draw(random: Random, facts: _Facts, pool: str) -> str:
    """A word of `pool` that is not yet a fact of this document."""
    taken = facts.values()
    value = random.choose(_POOLS[pool])
    while value in taken:
        value = random.choose(_POOLS[pool])
    return value


def _fill(random: Random, facts: _Facts, template: str, new: _Facts) -> str:
    """Fill the slots of `template`: `{x1}` is a fact of pool x, drawn into `new` if unknown;
    `{~x}` is drawn afresh and forgotten."""
    parts = _parts(template)
    out = [parts[0]]
    for i in range(1, len(parts), 2):
        key = parts[i]
        value = facts.get(key) or new.get(key)
        if value is None:
            if key[0] == "~":
                value = _draw(random, facts, key[1:])
            else:
                value = new[key] = _draw(random, facts, key.rstrip("0123456789"))
        out.append(value)
        out.append(parts[i + 1])
    sentence = _ARTICLE.sub(r"\1n ", "".join(out))
    return sentence[0].upper() + sentence[1:]


def _sentence(random: Random, facts: _Facts, split: Split, templates: Sequence[str]) -> str:
    """One sentence of `split` from `templates`; the facts that it introduces join `facts`."""
    for _ in range(_TRIES):
        new: _Facts = {}
        sentence = _fill(random, facts, random.choose(templates), new)
        if split_of_sentence(sentence) == split:
            facts.update(new)
            return sentence
    raise _StuckError


def _retry(seed: tuple[object, ...], make: Callable[[Random], T]) -> T:
    """`make` with a seeded generator, begun again (same stream) while it gets stuck."""
    random = Random(*seed)
    while True:
        try:
            return make(random)
        except _StuckError:
            continue


# --------------------------------------------------------------------------------------- stories
# A plot: its summary (first: it fixes the main facts), its sentences (each a list of wordings) and
# its questions (fact asked for, question, answer). A and B are people.

_WHEN = ["On {day1} {~part}", "On {day1}", "One {~weather} {day1}", "On a {~weather} {day1}"]


def _when(*endings: str) -> list[str]:
    """Each wording of the day before each ending."""
    return [f"{when}, {ending}" for when in _WHEN for ending in endings]


_Plot = tuple[str, list[list[str]], list[tuple[str, str, str]]]

_LOST: _Plot = (
    "{A} lost a {colour1} {thing1} in the {place1}, but {B} found it.",
    [
        [
            "{A} had a {~size} {colour1} {thing1}.",
            "{A} was a {~trait} {A.child} with a {colour1} {thing1}.",
            "There was a {~trait} {A.child} called {A}, who had a {colour1} {thing1}.",
        ],
        [
            "It was a present from {A.his} {relative1} from last {~season}.",
            "{A.his} {relative1} had made it in {~number} days.",
            "{A.his} {relative1} had bought it for {~number} coins.",
            "{A} had got it from {A.his} {relative1} last {~season}.",
        ],
        _when(
            "{A} took it to the {place1}.",
            "{A.he} went to the {place1} with the {thing1}.",
            "{A} walked to the {place1} and took the {thing1} along.",
        ),
        [
            "But {A.he} was {~very} {reason1} and lost the {thing1}.",
            "{A} was {~very} {reason1} there and lost the {thing1}.",
            "{A.he} was so {reason1} that {A.he} lost it there.",
        ],
        [
            "{A} looked for it {~manner}, but the {thing1} was gone.",
            "{A.he} looked for the {colour1} {thing1} {~manner}.",
        ],
        [
            "{~soon}, {B} found the {thing1} {spot1}.",
            "{~soon} {A.his} {~relation} {B} found it {spot1}.",
            "{B}, {A.his} {~relation}, saw the {thing1} {spot1}.",
        ],
        [
            "{B} gave it back, and {A} felt {~very} {feeling1}.",
            "{~soon} {A} got it back and felt {feeling1}.",
            "When {A} had the {thing1} again, {A.he} felt {~very} {feeling1}.",
        ],
    ],
    [
        ("colour1", "What colour was the {thing1} of {A}?", "The {thing1} of {A} was {colour1}."),
        (
            "colour1",
            "Which colour did the {thing1} have?",
            "{A} had a {thing1} that was {colour1}.",
        ),
        ("thing1", "What did {A} lose in the {place1}?", "In the {place1}, {A} lost a {thing1}."),
        ("thing1", "What did {B} find {spot1}?", "{B} found a {thing1}."),
        ("place1", "Where did {A} lose the {thing1}?", "{A} lost it in the {place1}."),
        ("place1", "Where did {A} go on {day1}?", "On {day1}, {A} went to the {place1}."),
        ("day1", "When did {A} go to the {place1}?", "{A} went to the {place1} on {day1}."),
        ("day1", "When did {A} lose the {thing1}?", "{A} lost the {thing1} on {day1}."),
        ("B", "Who found the {thing1} of {A}?", "The {thing1} of {A} was found by {B}."),
        ("B", "Who saw the {thing1} {spot1}?", "It was seen by {B}."),
        ("spot1", "Where did {B} find the {thing1}?", "{B} found the {thing1} {spot1}."),
        ("reason1", "Why did {A} lose the {thing1}?", "{A} lost it because {A.he} was {reason1}."),
        (
            "relative1",
            "From whom did {A} have the {thing1}?",
            "{A} had it from {A.his} {relative1}.",
        ),
        ("feeling1", "How did {A} feel in the end?", "In the end, {A} felt {feeling1}."),
    ],
)

_GIFT: _Plot = (
    "{A} bought a {colour1} {thing1} for {B} in the {place1}.",
    [
        [
            "{B} was {reason1}, and {A}, a {~trait} {A.child}, wanted to help.",
            "{A} saw that {A.his} {~relation} {B} was {~very} {reason1}.",
            "{A}, a {~trait} {A.child}, heard that {B} was {reason1}.",
        ],
        _when(
            "{A} went to the {place1}.",
            "{A} walked to the {place1} to buy a present.",
            "{A} took {A.his} money to the {place1}.",
        ),
        [
            "There {A.he} saw a {~size} {thing1}, and it was {colour1}.",
            "{A.he} found a {~size} {colour1} {thing1} there.",
            "{A} liked a {colour1} {thing1} that was {~very} {~size}.",
        ],
        [
            "It cost {number1} coins, and {A} paid {~how}.",
            "{A} paid {number1} coins for the {thing1}.",
            "{A} paid {number1} coins for the {colour1} {thing1}.",
            "For {number1} coins {A.he} took the {colour1} {thing1} home.",
        ],
        [
            "{~soon} {A} gave it to {B}, who felt {~very} {feeling1}.",
            "{B} got the {thing1} and felt {~very} {feeling1}.",
            "{B} took the {colour1} {thing1} and felt {feeling1}.",
        ],
        [
            "{B} put the {thing1} {spot1}.",
            "{~soon} {B} put it {spot1}.",
            "{B.he} put the {colour1} {thing1} {spot1} and sang {~manner}.",
        ],
        [
            "Then {A} and {B} had {food1} {~manner}.",
            "{B} gave {A} some {food1} to say thank you.",
            "{~soon} {A} got some {food1} from {B}.",
        ],
    ],
    [
        ("colour1", "What colour was the {thing1} for {B}?", "The {thing1} for {B} was {colour1}."),
        ("thing1", "What did {A} buy for {B}?", "For {B}, {A} bought a {thing1}."),
        ("thing1", "What did {B} put {spot1}?", "{B} put there a {thing1}."),
        ("place1", "Where did {A} buy the {thing1}?", "{A} bought it in the {place1}."),
        ("place1", "Where did {A} go on {day1}?", "On {day1}, {A} went to the {place1}."),
        ("day1", "When did {A} go to the {place1}?", "{A} went to the {place1} on {day1}."),
        ("day1", "When did {A} buy the {thing1}?", "{A} bought the {thing1} on {day1}."),
        ("number1", "What did the {thing1} of {B} cost?", "The {thing1} cost {A} {number1} coins."),
        ("B", "Who got the {thing1} from {A}?", "{A} gave the {thing1} to {B}."),
        ("A", "Who bought the {thing1} for {B}?", "The {thing1} for {B} was bought by {A}."),
        ("spot1", "Where did {B} put the {thing1}?", "{B} put the {thing1} {spot1}."),
        ("reason1", "Why did {A} help {B}?", "{A} helped {B} because {B.he} was {reason1}."),
        ("food1", "What did {A} get from {B}?", "From {B}, {A} got some {food1}."),
        ("feeling1", "How did {B} feel about the {thing1}?", "{B} felt {feeling1} about it."),
    ],
)

_SWAP: _Plot = (
    "{A} gave {B} a {colour1} {thing1} and got a {colour2} {thing2}.",
    [
        [
            "{A} had a {colour1} {thing1} from {A.his} {~relative}.",
            "{A}, a {~trait} {A.child}, had a {colour1} {thing1}.",
            "The {relative1} of {A} had made {A.him} a {colour1} {thing1}.",
        ],
        [
            "{A.his} {~relation} {B} had a {colour2} {thing2}.",
            "{B} had a {~size} {colour2} {thing2}.",
            "{B}, a {~trait} {B.child}, had a {colour2} {thing2}.",
        ],
        _when(
            "they met in the {place1}.",
            "{A} met {B} in the {place1}.",
            "{B} came to the {place1} and met {A}.",
        ),
        [
            "{A} did not like the {thing1}, because it was too {size1}.",
            "{A} said that the {thing1} was too {size1}.",
            "{A.he} thought the {colour1} {thing1} was too {size1}.",
        ],
        [
            "{~soon} {A} gave the {thing1} to {B} and got the {thing2}.",
            "So {A} got the {colour2} {thing2}, and {B} got the {thing1}.",
            "{~soon}, {B} took the {colour1} {thing1} and gave {A} the {thing2}.",
        ],
        [
            "{A} put the {thing2} {spot1}.",
            "{~soon} {A} put the {thing2} {spot1}.",
            "{A} took the {colour2} {thing2} home and put it {spot1}.",
        ],
        [
            "{~soon} {A} felt {~very} {feeling1}.",
            "{A} looked at the {thing2} {~manner} and felt {feeling1}.",
            "The {thing2} made {A} {~very} {feeling1}.",
        ],
    ],
    [
        ("colour1", "What colour was the {thing1} of {A}?", "The {thing1} of {A} was {colour1}."),
        ("colour2", "What colour was the {thing2} of {B}?", "The {thing2} of {B} was {colour2}."),
        ("thing1", "What did {B} get from {A}?", "From {A}, {B} got a {thing1}."),
        ("thing2", "What did {A} get from {B}?", "From {B}, {A} got a {thing2}."),
        ("thing2", "What did {A} put {spot1}?", "{A} put there a {thing2}."),
        ("place1", "Where did {A} meet {B}?", "{A} met {B} in the {place1}."),
        ("place1", "Where did {B} go on {day1}?", "On {day1}, {B} went to the {place1}."),
        ("day1", "When did {A} meet {B}?", "{A} met {B} on {day1}."),
        ("day1", "When did {A} get the {thing2}?", "{A} got the {thing2} on {day1}."),
        ("B", "Who had the {thing2} at first?", "At first, the {thing2} was with {B}."),
        ("A", "Who had the {thing1} at first?", "At first, the {thing1} was with {A}."),
        ("spot1", "Where did {A} put the {thing2}?", "{A} put the {thing2} {spot1}."),
        (
            "size1",
            "Why did {A} not like the {thing1}?",
            "{A} did not like it, because it was {size1}.",
        ),
        ("feeling1", "How did {A} feel in the end?", "In the end, {A} felt {feeling1}."),
    ],
)

_REPAIR: _Plot = (
    "{B} the {job1} repaired the {colour1} {thing1} of {A} with a {tool1}.",
    [
        [
            "{A} had a {colour1} {thing1} from {A.his} {relative1}.",
            "{A} got a {~size} {colour1} {thing1} from {A.his} {relative1}.",
            "The {relative1} of {A} gave {A.him} a {colour1} {thing1}.",
        ],
        _when(
            "it broke in the {place1}.",
            "the {thing1} broke when {A} was in the {place1}.",
            "{A} was in the {place1}, and the {thing1} broke.",
        ),
        [
            "{A} was {~very} {mood1} and wanted help.",
            "That made {A} {~very} {mood1}.",
            "{~soon} {A} was {~very} {mood1} and wanted help.",
        ],
        [
            "{A.he} went to {B}, a {~trait} {job1}.",
            "{~soon} {A} asked {B}, who was a {~trait} {job1}.",
            "{A} knew {B}, a {job1} with a {~colour} house.",
        ],
        [
            "{B} repaired it with a {~size} {tool1}.",
            "{B} took a {~size} {tool1} and repaired the {thing1}.",
            "With a {tool1}, {B} repaired the {colour1} {thing1} {~manner}.",
        ],
        [
            "{A} paid with {food1} and felt {~very} {feeling1}.",
            "{A} felt {feeling1} and gave {B} some {food1}.",
            "{~soon} {A} felt {feeling1} and brought {B} some {food1}.",
        ],
    ],
    [
        ("colour1", "What colour was the {thing1} of {A}?", "The {thing1} of {A} was {colour1}."),
        ("thing1", "What broke in the {place1}?", "In the {place1}, {A} broke a {thing1}."),
        ("thing1", "What did {B} repair for {A}?", "For {A}, {B} repaired a {thing1}."),
        ("place1", "Where did the {thing1} of {A} break?", "The {thing1} broke in the {place1}."),
        ("day1", "When did the {thing1} of {A} break?", "The {thing1} broke on {day1}."),
        ("B", "Who repaired the {thing1} of {A}?", "The {thing1} was repaired by {B}."),
        ("A", "Who brought {food1} to {B}?", "{B} got {food1} from {A}."),
        ("job1", "What was the job of {B}?", "{B} worked as a {job1}."),
        ("tool1", "With what did {B} repair the {thing1}?", "{B} used a {tool1}."),
        ("tool1", "What did {B} use for the {thing1}?", "For the {thing1}, {B} used a {tool1}."),
        ("food1", "What did {A} give to {B}?", "{A} gave {B} some {food1}."),
        ("relative1", "Who gave {A} the {thing1}?", "{A} had it from {A.his} {relative1}."),
        ("mood1", "How was {A} after it broke?", "After it broke, {A} was {mood1}."),
        ("feeling1", "How did {A} feel in the end?", "In the end, {A} felt {feeling1}."),
    ],
)

_PET: _Plot = (
    "The {colour1} {animal1} of {A} ran away to the {place1}, and {B} brought it home.",
    [
        [
            "{A} had a {size1} {colour1} {animal1}.",
            "{A}, a {~trait} {A.child}, had a {colour1} {animal1}.",
            "The {animal1} of {A} was {colour1} and {~very} {size1}.",
        ],
        [
            "It slept {spot1} and loved {food1}.",
            "It was {~very} {size1}, liked {food1} and slept {spot1}.",
            "Its bed was {spot1}, and it ate {food1} {~manner}.",
        ],
        _when(
            "the {animal1} ran away to the {place1}.",
            "it was {~very} {reason1} and ran to the {place1}.",
            "the {animal1} of {A} ran into the {place1}.",
        ),
        [
            "{A} called the {animal1} {~manner}.",
            "{A} and {A.his} {~relative} looked for the {animal1} {~manner}.",
            "{A} took {~food} and called the {colour1} {animal1} {~manner}.",
        ],
        [
            "{~soon}, {B} saw the {animal1} and brought it home.",
            "{B}, a {~trait} {B.child}, brought the {animal1} home.",
            "{~soon} {A.his} {~relation} {B} brought it home.",
        ],
        [
            "{A} felt {feeling1} and gave {B} a {thing1}.",
            "{~soon} {A} gave {B} a {thing1} and felt {feeling1}.",
            "{A} was {~very} {feeling1}, and {B} got a {~size} {thing1}.",
        ],
    ],
    [
        ("colour1", "What colour was the {animal1} of {A}?", "The {animal1} was {colour1}."),
        ("animal1", "Which animal did {A} have?", "The animal of {A} was a {animal1}."),
        ("animal1", "What did {B} bring home to {A}?", "To {A}, {B} brought home a {animal1}."),
        ("place1", "Where did the {animal1} of {A} run?", "The {animal1} ran to the {place1}."),
        ("day1", "When did the {animal1} of {A} run away?", "The {animal1} ran away on {day1}."),
        ("B", "Who brought the {animal1} home to {A}?", "The {animal1} was brought home by {B}."),
        ("B", "Who got the {thing1} from {A}?", "{A} gave the {thing1} to {B}."),
        ("spot1", "Where did the {animal1} of {A} sleep?", "The {animal1} of {A} slept {spot1}."),
        ("food1", "What did the {animal1} of {A} like?", "The {animal1} of {A} liked {food1}."),
        ("food1", "What did the {colour1} {animal1} eat?", "The {colour1} {animal1} ate {food1}."),
        ("thing1", "What did {B} get from {A}?", "From {A}, {B} got a {thing1}."),
        ("feeling1", "How did {A} feel in the end?", "In the end, {A} felt {feeling1}."),
    ],
)

_PLOTS = (_LOST, _GIFT, _SWAP, _REPAIR, _PET)


class _Story:
    """One story of `split`: its text, its summary, and what is needed to ask about it."""

    def __init__(self, random: Random, split: Split) -> None:
        summary, sentences, self.asked = random.choose(_PLOTS)
        self.random, self.split = random, split
        self.summary = ""
        for _ in range(_TRIES):
            self.facts: _Facts = {}
            _bind_person(self.facts, "A", random.choose(_POOLS["person"]))
            _bind_person(self.facts, "B", _draw(random, self.facts, "person"))
            self.summary = _fill(random, self.facts, summary, self.facts)
            if split_of_sentence(self.summary) == split:
                break
        else:
            raise _StuckError
        self.text = " ".join(_sentence(random, self.facts, split, s) for s in sentences)

    def ask(self, but_not: Sequence[str] = ()) -> tuple[str, str, str]:
        """A question of this split: (question, right answer as a sentence, the fact asked for)."""
        new: _Facts = {}
        for _ in range(_TRIES):
            fact, question, answer = self.random.choose(self.asked)
            if fact in but_not or fact not in self.facts:
                continue
            asked = _fill(self.random, self.facts, question, new)
            answered = _fill(self.random, self.facts, answer, new)
            if split_of_sentence(asked) == self.split == split_of_sentence(answered):
                return asked, answer, fact
        raise _StuckError

    def choices(self, answer: str, fact: str) -> tuple[list[str], int]:
        """`CHOICES` different answers, wrong ones of the same kind (those in the story first)."""
        person = fact in ("A", "B")
        pool = "person" if person else fact.rstrip("0123456789")
        right = self.facts[fact]
        wrong = self.random.shuffled([w for w in _POOLS[pool] if w != right])
        wrong.sort(key=lambda word: word not in self.facts.values())  # stable: the story's first
        words = self.random.shuffled([right, *wrong[: CHOICES - 1]])
        texts = [_fill(self.random, {**self.facts, fact: word}, answer, {}) for word in words]
        return texts, words.index(right)


def _question_lines(asked: str, answer: str) -> str:
    return f"Question: {asked}\nAnswer: {answer}"


def _story_document(random: Random, split: Split) -> str:
    """A story, followed by its summary (two in five) or by one to three questions."""
    story = _Story(random, split)
    if random.below(5) < 2:
        return f"{story.text}\nSummary: {story.summary}"
    lines, seen = [story.text], list[str]()
    for _ in range(1 + random.below(3)):
        asked, answer, fact = story.ask(seen)
        lines.append(_question_lines(asked, _fill(random, story.facts, answer, {})))
        seen.append(fact)
    return "\n".join(lines)


# ----------------------------------------------------------------------------------- translation
# English and German; genders m, f, n; cases 0 nominative, 1 accusative, 2 dative.

_PERSONS = [entry.split() for entry in (
    "teacher m Lehrer|woman f Frau|man m Mann|child n Kind|girl n Mädchen|doctor m Arzt|"
    "baker m Bäcker|painter m Maler|gardener m Gärtner|mother f Mutter|father m Vater|"
    "sister f Schwester|brother m Bruder|friend m Freund|queen f Königin|king m König"
).split("|")]  # fmt: skip
_OBJECTS = [entry.split() for entry in (
    "apple m Apfel|book n Buch|ball m Ball|lamp f Lampe|clock f Uhr|hat m Hut|coat m Mantel|"
    "key m Schlüssel|bag f Tasche|cup f Tasse|box f Kiste|bell f Glocke|ring m Ring|boat n Boot|"
    "bicycle n Fahrrad|letter m Brief|cake m Kuchen|picture n Bild|flower f Blume|glass n Glas|"
    "car n Auto|horse n Pferd|dog m Hund|cat f Katze"
).split("|")]  # fmt: skip
_LOOKS = [entry.split() for entry in (  # of people
    "old alt|young jung|small klein|tall groß|clever klug|friendly nett|good gut"
).split("|")]  # fmt: skip
_ADJECTIVES = [entry.split() for entry in (  # of things
    "old alt|small klein|big groß|new neu|beautiful schön|red rot|blue blau|green grün|"
    "black schwarz|white weiß"
).split("|")]  # fmt: skip
_MOODS = [entry.split() for entry in (
    "happy froh|sad traurig|tired müde|proud stolz|ill krank|angry böse"
).split("|")]  # fmt: skip
_WHERE = [entry.split("=") for entry in (
    "in the garden=im Garten|in the park=im Park|in the forest=im Wald|in the school=in der Schule|"
    "in the kitchen=in der Küche|in the house=im Haus|in the village=im Dorf|"
    "in the town=in der Stadt|in the church=in der Kirche|in the castle=im Schloss"
).split("|")]  # fmt: skip
_TIMES = [entry.split("=") for entry in (
    "yesterday=gestern|today=heute|on Monday=am Montag|on Tuesday=am Dienstag|"
    "on Friday=am Freitag|on Sunday=am Sonntag|in the morning=am Morgen|in the evening=am Abend"
).split("|")]  # fmt: skip
_VERBS = [entry.split("=") for entry in (  # past and infinitive, English then German
    "bought=buy=kaufte=kaufen|saw=see=sah=sehen|found=find=fand=finden|sold=sell=verkaufte=verkaufen|"
    "carried=carry=trug=tragen|painted=paint=malte=malen|looked for=look for=suchte=suchen|"
    "lost=lose=verlor=verlieren|loved=love=liebte=lieben|hid=hide=versteckte=verstecken"
).split("|")]  # fmt: skip
_GIVING = [entry.split("=") for entry in "gave=gab|showed=zeigte|sent=schickte".split("|")]
_MODALS = [entry.split("=") for entry in "wanted to=wollte|had to=musste".split("|")]

_DEFINITE = {"m": ("der", "den", "dem"), "f": ("die", "die", "der"), "n": ("das", "das", "dem")}
_INDEFINITE = {
    "m": ("ein", "einen", "einem"), "f": ("eine", "eine", "einer"), "n": ("ein", "ein", "einem"),
}  # fmt: skip
_AFTER_DEFINITE = {"m": ("e", "en", "en"), "f": ("e", "e", "en"), "n": ("e", "e", "en")}
_AFTER_INDEFINITE = {"m": ("er", "en", "en"), "f": ("e", "e", "en"), "n": ("es", "es", "en")}


def _noun_phrase(random: Random, nouns: list[list[str]], case: int) -> tuple[str, str]:
    """An English and a German noun phrase: article, one adjective or none, noun."""
    english, gender, german = random.choose(nouns)
    definite = random.below(2) == 0
    articles, endings = (
        (_DEFINITE, _AFTER_DEFINITE) if definite else (_INDEFINITE, _AFTER_INDEFINITE)
    )
    article = articles[gender][case]
    if random.below(2):
        adjective, stem = random.choose(_LOOKS if nouns is _PERSONS else _ADJECTIVES)
        english = f"{adjective} {english}"
        german = f"{stem}{endings[gender][case]} {german}"
    return _ARTICLE.sub(r"\1n ", f"{'the' if definite else 'a'} {english}"), f"{article} {german}"


def _subject(random: Random) -> tuple[str, str]:
    """A subject: a name (the same in both languages) or a noun phrase."""
    if random.below(4) == 0:
        name = random.choose(_POOLS["person"])
        return name, name
    return _noun_phrase(random, _PERSONS, 0)


def _translation_pair(random: Random) -> tuple[str, str]:
    """One English sentence and its German translation (verb second, or last after `weil`)."""
    form = random.below(4)
    subject, subjekt = _subject(random)
    thing, ding = _noun_phrase(random, _OBJECTS, 1)
    past, infinitive, verb, grundform = random.choose(_VERBS)
    if form == 3:
        second, zweites = _subject(random)
        mood, laune = random.choose(_MOODS)
        english = f"{subject} was {mood} because {second} {past} {thing}."
        german = f"{subjekt} war {laune}, weil {zweites} {ding} {verb}."
    else:
        where, wo = random.choose(_WHERE) if random.below(2) else ("", "")
        tail = ""
        if form == 0:
            predicate, rest = f"{past} {thing} {where}", f"{ding} {wo}"
        elif form == 1:
            modal, verb = random.choose(_MODALS)
            predicate, rest = f"{modal} {infinitive} {thing} {where}", f"{ding} {wo}"
            tail = grundform
        else:
            past, verb = random.choose(_GIVING)
            person, empfaenger = _noun_phrase(random, _PERSONS, 2)
            predicate, rest = f"{past} {person} {thing}", f"{empfaenger} {ding}"
        if random.below(2):
            time, zeit = random.choose(_TIMES)
            english = f"{time}, {subject} {predicate}."
            german = f"{zeit} {verb} {subjekt} {rest} {tail}."
        else:
            english, german = f"{subject} {predicate}.", f"{subjekt} {verb} {rest} {tail}."
    return _tidy(english), _tidy(german)


def _tidy(sentence: str) -> str:
    """Single spaces, none before the full stop, a capital first letter."""
    sentence = " ".join(sentence.split()).replace(" .", ".")
    return sentence[0].upper() + sentence[1:]


def _translation(random: Random, split: Split) -> TaskItem:
    while True:
        english, german = _translation_pair(random)
        if split_of_sentence(english) == split == split_of_sentence(german):
            return {"prompt": f"English: {english}\nGerman:", "target": german}


# ----------------------------------------------------------------------------------- description


def _description(random: Random, split: Split) -> TaskItem:
    """A record and the one or two sentences that say it (a function of the record)."""
    while True:
        facts: _Facts = {}
        _bind_person(facts, "A", random.choose(_POOLS["person"]))
        record = [("name", facts["A"]), ("job", random.choose(_POOLS["job"]))]
        with_age, with_pet, with_hobby, with_food = (random.below(3) > 0 for _ in range(4))
        age = 20 + random.below(60)
        if with_age:
            record.append(("age", str(age)))
        record.append(("city", random.choose(_POOLS["city"])))
        clauses = []
        if with_pet:
            pet = f"{random.choose(_POOLS['colour'])} {random.choose(_POOLS['animal'])}"
            record.append(("pet", pet))
            clauses.append(f"has a {pet}")
        if with_hobby:
            record.append(("hobby", random.choose(_POOLS["hobby"])))
            clauses.append(f"enjoys {record[-1][1]}")
        if with_food:
            record.append(("food", random.choose(_POOLS["food"])))
            clauses.append(f"likes {record[-1][1]}")
        values = dict(record)
        job = f"{age} year old {values['job']}" if with_age else values["job"]
        sentences = [_ARTICLE.sub(r"\1n ", f"{facts['A']} is a {job} from {values['city']}.")]
        if clauses:
            *most, last = clauses
            said = f"{', '.join(most)} and {last}" if most else last
            sentences.append(f"{facts['A.he'].capitalize()} {said}.")
        if all(split_of_sentence(sentence) == split for sentence in sentences):
            line = " | ".join(f"{key}: {value}" for key, value in record)
            return {"prompt": f"Record: {line}\nText:", "target": " ".join(sentences)}


def _summary(random: Random, split: Split) -> TaskItem:
    story = _Story(random, split)
    return {"prompt": f"{story.text}\nSummary:", "target": story.summary}


# ------------------------------------------------------------------------ out of domain: letters

_NEWS = [
    "The {~size} {~colour} {~thing} is in the {~place}, {~spot}.",
    "In {~city}, the {~job} sold it to the {~relative} of {~person}.",
    "The {~animal} slept {~spot} {~manner} because it was {~weather}.",
    "On {~day}, {~person} and {~person} had to look for a {~tool} in the {~place}.",
    "{~person} is {~very} {~mood}, but the {~relation} of {~person} is {~feeling}.",
    "The {~job} took {~number} cups of {~food} and some {~food}.",
]


def _out_of_domain(random: Random, split: Split) -> str:
    """A letter with a sentence a line: most are worded as in the stories but have nothing to do
    with each other, the others are worded as nowhere else."""
    facts: _Facts = {}
    first = _sentence(
        random, facts, split, ["{person1} to {person2}:", "{person1} to {person2}, {~day} {~part}:"]
    )
    lines = [first]
    for _ in range(4 + random.below(3)):
        others: _Facts = {}
        _bind_person(others, "A", random.choose(_POOLS["person"]))
        _bind_person(others, "B", _draw(random, others, "person"))
        _, story, _ = random.choose(_PLOTS)
        wordings = _NEWS if random.below(5) == 0 else random.choose(story)
        lines.append(_sentence(random, others, split, wordings))
    lines.append(_sentence(random, facts, split, ["From {person1}, {~city}, {~day} {~part}"]))
    return f"{lines[0]}\n{' '.join(lines[1:-1])}\n{lines[-1]}"


# ------------------------------------------------------------------------------------ public API

_MAKERS: dict[Task, Callable[[Random, Split], TaskItem]] = {
    "translation": _translation,
    "description": _description,
    "summary": _summary,
}


def _document(split: Split, index: int) -> str:
    """In-domain document `index`: of 20, seven are stories, nine translations, four records."""

    def make(random: Random) -> str:
        kind = random.below(20)
        if kind < 7:
            return _story_document(random, split)
        item = _translation(random, split) if kind < 16 else _description(random, split)
        return f"{item['prompt']} {item['target']}"

    return _retry((split, "document", index), make)


def documents(split: Split, start: int = 0, domain: Domain = "in") -> Iterator[str]:
    """The endless corpus of `split` from document `start` on, each without its blank line."""
    index = start
    while True:
        if domain == "in":
            yield _document(split, index)
        else:
            yield _retry((split, "out", index), lambda random: _out_of_domain(random, split))
        index += 1


def text(split: Split, documents_count: int, domain: Domain = "in") -> str:
    """The first documents of `split` as one text, a blank line after each.

    About 190 bytes and 56 tokens a document: 2,000 documents are a perplexity text of more than
    100,000 tokens. `domain="out"` gives letters, on which the model is not trained.
    """
    stream = documents(split, 0, domain)
    return "".join(f"{next(stream)}\n\n" for _ in range(documents_count))


def stories(split: Split, count: int) -> list[str]:
    """The first `count` stories of `split`, without question or summary."""
    return [
        _retry((split, "story", index), lambda random: _Story(random, split)).text
        for index in range(count)
    ]


def task_items(task: Task, split: Split, count: int) -> list[TaskItem]:
    """The first `count` different items of a text-to-text task.

    The prompt ends just before the target's leading space; the target ends where the line ends:
    generation stops at the first newline.
    """
    items: dict[str, TaskItem] = {}
    index = 0
    while len(items) < count:
        item = _retry((split, task, index), lambda random: _MAKERS[task](random, split))
        items.setdefault(item["prompt"], item)
        index += 1
    return list(items.values())


_CHOSEN = frozenset({"A", "B", "animal", "colour", "place", "thing"})
"""What multiple choice asks for: who, what, which colour, where. Questions of the training text
also ask for days, feelings, prices and hiding places, which nothing but a question ever repeats:
a model of this size learns those last."""


def questions(split: Split, count: int) -> list[Question]:
    """The first `count` multiple-choice items: `CHOICES` answers, one right, chance 1/4."""

    def make(random: Random) -> Question:
        story = _Story(random, split)
        others = [f for f, _, _ in story.asked if f.rstrip("0123456789") not in _CHOSEN]
        asked, answer, fact = story.ask(others)
        choices, right = story.choices(answer, fact)
        return {
            "context": story.text,
            "question": asked,
            "prompt": f"{story.text}\nQuestion: {asked}\nAnswer:",
            "choices": choices,
            "answer": right,
        }

    return [_retry((split, "question", index), make) for index in range(count)]
