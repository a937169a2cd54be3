"""English words that RULER's tasks draw keys and lists from."""

import dataclasses
import importlib.metadata
import importlib.resources
import importlib.util
from collections.abc import Iterator
from functools import cached_property
from random import Random

# The fallback where wonderwords is not installed; common words without a common ending or stem among them.
_ADJECTIVES = """
able ancient angry autumn bitter black blue bold brave brief bright broad broken brown busy calm careful cheap clean
clear clever cold common cool crimson crooked curious curved dark deep distant double dry dull dusty eager early easy
elegant empty equal even faint fair false famous fancy fast final fine firm flat foreign fragrant free fresh friendly
full gentle giant glad golden good grand gray great green half happy hard heavy hidden high hollow honest huge humble
icy ideal jolly keen kind large late lazy light little lively lonely long loud low lucky major mellow merry mighty mild
minor misty modern modest muddy narrow native neat new nice noble noisy odd old open orange pale patient perfect plain
polite poor proud pure purple quick quiet rapid rare raw ready red rich ripe rough round royal rusty safe salty scarce
secret serious shallow sharp shiny short shy silent silver simple slow small smooth snowy soft solid sour spare square
steady steep stiff still strange strong sturdy sudden sunny sweet swift tall tame tender thick thin tidy tiny tired
tough urgent useful usual vague vast violet vivid warm wary weak wealthy weekly wet white whole wicked wide wild windy
wise wooden yellow young
""".split()  # noqa: SIM905
_NOUNS = """
acorn actor airport album anchor ankle apple apron arch arrow artist attic aunt baker balcony banana bandage banner
barn barrel basket beach bean bear beetle bell bench berry bicycle bird blanket blossom boat bone book boot border
bottle bowl box branch bread breeze brick bridge broom brush bucket bush butter button cabin cable cactus cake camel
camera candle canoe canyon captain card carpet carrot castle cat cave ceiling chain chair chalk cheese cherry chest
chicken church circle city cliff cloak clock cloud clover coast coat coin comb compass copper corn corner cottage
cotton cousin cow crab cradle crane crown cup curtain dancer daughter deer desert desk diamond doctor dog dolphin
donkey door dragon drawer dream dress drum duck eagle earth echo egg elbow engine envelope evening eye fabric falcon
farm farmer feather fence fern ferry field finger fire fish flag flame flute fog forest fork fountain fox frame friend
frog fruit garden garlic gate ghost glacier glass globe glove goat goose grain grape grass guitar hammer harbor harp
hat hawk hay heart hedge helmet hen herb hill honey hook horizon horn horse hotel house island ivory ivy jacket jar
jewel journey judge juice jungle kettle key kitchen kite kitten knee knife knot ladder lake lamb lamp lantern leaf
leather lemon letter library lily lion lizard lock lotus lunch machine magnet mailbox map maple marble market mask
meadow medal melon merchant metal midnight milk mill mirror monkey moon morning mosaic moss moth mountain mouse
museum mushroom music nail napkin needle nephew nest net night notebook nurse nut oak oasis ocean office olive onion
opera orchard otter oven owl oyster paddle page painter palace panda panther paper parade park parrot path peach
peacock pear pearl pebble pen pencil penguin pepper perfume piano pigeon pillow pilot pine pirate planet plate
plum pocket poem poet pond pony poppy porch potato prairie prince puppet puzzle quarry queen rabbit radio railway
rain raven ribbon rice ring river road robin rocket roof room rope rose sail sailor salt sand saddle scarf school
scissors sea seed shadow shark sheep shelf shell ship shirt shoe shore shoulder singer sister sky sled smoke snail
snake soap sock soldier song soup spider spoon spring stable stairs star station statue stone storm story stove
stream street sugar suitcase summer sun swan sword table tailor teacher temple tent theater thimble thorn thread
throne thunder tiger tile tower town train tree trumpet tulip tunnel turtle umbrella uncle valley vase velvet village
violin volcano wagon wall walnut watch water wave weaver whale wheat wheel whistle willow window wing winter wolf
wool worm writer zebra
""".split()  # noqa: SIM905


@dataclasses.dataclass(frozen=True)
class WordList:
    """Words by kind, each kind sorted and without repetition; `name` says where they are from."""

    name: str
    adjectives: tuple[str, ...]
    nouns: tuple[str, ...]
    verbs: tuple[str, ...]

    def compound(self, rng: Random) -> str:
        """An adjective and a noun, such as `green-house`."""
        return f"{rng.choice(self.adjectives)}-{rng.choice(self.nouns)}"

    def stream(self, rng: Random) -> Iterator[str]:
        """All single words in random order, then, where they do not suffice, compounds: `count` distinct words."""
        yield from rng.sample(self.single, len(self.single))
        seen = set()
        while len(seen) < self.count - len(self.single):
            if (word := self.compound(rng)) not in seen:
                seen.add(word)
                yield word

    @cached_property
    def single(self) -> list[str]:
        """The words of all kinds, sorted."""
        return sorted({*self.adjectives, *self.nouns, *self.verbs})

    @property
    def count(self) -> int:
        """Number of words in a stream: half of the compounds, so that drawing another one never takes long."""
        return len(self.single) + len(self.adjectives) * len(self.nouns) // 2


def built_in_words() -> WordList:
    """The word list of this package."""
    return _word_list("built in", _ADJECTIVES, _NOUNS, ())


def load_words() -> WordList:
    """The words of the package wonderwords, as RULER has them, or else the built-in ones; `name` says which."""
    if importlib.util.find_spec("wonderwords") is None:
        return built_in_words()
    assets = importlib.resources.files("wonderwords") / "assets"
    lists = [
        (assets / f"{kind}list.txt").read_text(encoding="utf-8").splitlines() for kind in ("adjective", "noun", "verb")
    ]
    return _word_list(f"wonderwords {importlib.metadata.version('wonderwords')}", *lists)


def _word_list(name: str, *lists) -> WordList:
    stripped = [{word.strip() for word in words} - {""} for words in lists]
    return WordList(name, *(tuple(sorted(words)) for words in stripped))
