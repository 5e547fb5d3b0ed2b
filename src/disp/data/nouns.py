"""The concrete nouns that the built-in scenes are drawn with, and the OpenMoji drawing of each."""

from __future__ import annotations

# Hand-picked: one drawing a noun, distinguishable at 28 pixels, no people, flags, signs or symbols.
NOUNS_BY_CATEGORY: dict[str, dict[str, str]] = {
    "animal": {
        "dog": "🐕", "cat": "🐱", "horse": "🐎", "cow": "🐄", "pig": "🐖", "sheep": "🐑",
        "camel": "🐪", "elephant": "🐘", "rabbit": "🐇", "chicken": "🐔", "duck": "🦆", "owl": "🦉",
        "penguin": "🐧", "frog": "🐸", "turtle": "🐢", "snake": "🐍", "whale": "🐳", "dolphin": "🐬",
        "fish": "🐟", "octopus": "🐙", "snail": "🐌", "butterfly": "🦋", "bee": "🐝", "ladybug": "🐞",
        "spider": "🕷", "crab": "🦀", "lobster": "🦞", "flamingo": "🦩", "hedgehog": "🦔",
    },
    "food": {
        "apple": "🍎", "banana": "🍌", "grapes": "🍇", "lemon": "🍋", "pear": "🍐", "cherry": "🍒",
        "strawberry": "🍓", "pineapple": "🍍", "watermelon": "🍉", "carrot": "🥕", "corn": "🌽",
        "broccoli": "🥦", "mushroom": "🍄", "avocado": "🥑", "cheese": "🧀", "egg": "🥚",
        "pizza": "🍕", "hamburger": "🍔", "taco": "🌮", "cake": "🎂", "cookie": "🍪", "donut": "🍩",
        "lollipop": "🍭",
    },
    "vehicle": {
        "car": "🚗", "bus": "🚌", "van": "🚚", "tractor": "🚜", "bicycle": "🚲",
        "motorcycle": "🏍", "train": "🚂", "tram": "🚊", "airplane": "✈", "helicopter": "🚁",
        "rocket": "🚀", "sailboat": "⛵", "canoe": "🛶", "ship": "🚢",
    },
    "plant": {
        "tree": "🌳", "pine": "🌲", "palm": "🌴", "cactus": "🌵", "rose": "🌹",
        "sunflower": "🌻", "clover": "🍀",
    },
    "building": {
        "house": "🏠", "castle": "🏰", "church": "⛪", "factory": "🏭", "tent": "⛺", "tower": "🗼",
    },
    "clothing": {
        "hat": "🎩", "crown": "👑", "shirt": "👕", "dress": "👗", "boot": "👢", "sneaker": "👟",
        "sock": "🧦", "glove": "🧤", "glasses": "👓", "backpack": "🎒",
    },
    "tool": {
        "hammer": "🔨", "wrench": "🔧", "saw": "🪚", "scissors": "✂", "key": "🔑",
        "lock": "🔒", "umbrella": "☂", "bucket": "🪣", "broom": "🧹",
        "anchor": "⚓", "bell": "🔔",
    },
    "music": {
        "guitar": "🎸", "violin": "🎻", "trumpet": "🎺", "drum": "🥁", "piano": "🎹",
    },
    "sport": {
        "football": "⚽", "basketball": "🏀", "kite": "🪁", "trophy": "🏆",
        "dartboard": "🎯", "balloon": "🎈",
    },
    "household": {
        "chair": "🪑", "couch": "🛋", "lamp": "💡", "clock": "⏰", "camera": "📷",
        "television": "📺", "telephone": "☎", "book": "📕", "pencil": "✏", "cup": "☕", "bottle": "🍾",
        "teapot": "🫖", "gift": "🎁", "envelope": "✉", "bomb": "💣", "robot": "🤖",
        "teddy": "🧸", "globe": "🌍",
    },
}  # fmt: skip

NOUNS: dict[str, str] = {noun: emoji for group in NOUNS_BY_CATEGORY.values() for noun, emoji in group.items()}


def svg_name(character: str) -> str:
    """File name of a character's OpenMoji drawing: its code point in upper-case hexadecimal."""
    return f"{ord(character):04X}.svg"


def with_article(noun: str) -> str:
    """The noun with its indefinite article; nouns that are plural in form take none."""
    if noun in {"grapes", "scissors", "glasses", "corn", "broccoli", "cheese"}:
        return noun
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"
