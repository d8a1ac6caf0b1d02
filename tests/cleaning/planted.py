"""Faults planted into clean text: copies with some words changed, and rubbish of known kinds."""

import random
import string
from collections.abc import Callable, Sequence

RUBBISH = ("characters", "repeated line", "symbols", "markup", "other language")

# The first articles of the Universal Declaration of Human Rights; its words are shuffled.
_GERMAN = """
    alle menschen sind frei und gleich an würde und rechten geboren sie sind mit vernunft und gewissen begabt und sollen
    einander im geiste der brüderlichkeit begegnen jeder hat anspruch auf die in dieser erklärung verkündeten rechte und
    freiheiten ohne irgendeinen unterschied etwa nach rasse hautfarbe geschlecht sprache religion
"""


def near_duplicate(text: str, rate: float, words: Sequence[str], chance: random.Random) -> str:
    """Returns `text` with a share of its words replaced, deleted or followed by another, lines as they are."""

    def edited(line: str) -> str:
        result = []
        for word in line.split(" "):
            if not word or chance.random() >= rate:
                result.append(word)
            else:
                other = chance.choice(words)
                result += chance.choice(([other], [], [word, other]))
        return " ".join(result)

    return "\n".join(map(edited, text.split("\n")))


def rubbish(kind: str, size: int, chance: random.Random) -> str:
    """Returns about `size` characters of a kind in `RUBBISH`."""
    return _MAKERS[kind](size, chance)[:size]


def _characters(size: int, chance: random.Random) -> str:
    alphabet = string.ascii_letters + string.digits + "    \n"
    return "".join(chance.choices(alphabet, k=size))


def _repeated_line(size: int, chance: random.Random) -> str:
    line = " ".join(
        chance.choices(["the", "best", "price", "of", "shoes", "and", "bags", "with", "free", "order"], k=12)
    )
    return f"{line}.\n" * (size // (len(line) + 2) + 1)


def _symbols(size: int, chance: random.Random) -> str:
    return "".join(chance.choices("!@#$%^&*()_+-=[]{}|;:,./<>?0123456789 ", k=size))


def _markup(size: int, chance: random.Random) -> str:
    lines = []
    while sum(map(len, lines)) < size:
        number = chance.randrange(10**6)
        lines.append(f'<td class="c{number}"><a href="/item/{number}">{number}</a></td></tr><tr>\n')
    return "".join(lines)


def _other_language(size: int, chance: random.Random) -> str:
    lines = []
    while sum(map(len, lines)) < size:
        lines.append(" ".join(chance.choices(_GERMAN.split(), k=14)).capitalize() + ".\n")
    return "".join(lines)


_MAKERS: dict[str, Callable[[int, random.Random], str]] = dict(
    zip(RUBBISH, (_characters, _repeated_line, _symbols, _markup, _other_language), strict=True)
)
