"""Two ints -> the text of their sum, and back: what the adder is asked, should say, and never saw.

A sum is written `1234+5678=2196`: the operands as people write them, the answer with its ones first, so that
a carry is known before the digit that needs it.
"""

import random
from zlib import crc32

Pair = tuple[int, int]

DIGITS = 5  # an operand is 0 .. 10**DIGITS - 1
LONGEST = DIGITS + 2  # tokens of an answer at most: one digit more than the operands have, then the end
UNSEEN_ONE_IN = 10  # about one pair in ten is never trained on


def seen(a: int, b: int) -> bool:
    """Whether training may use the pair; the same for `a+b` and `b+a`, so neither gives the other away."""
    low, high = sorted((a, b))
    return crc32(f"{low}+{high}".encode()) % UNSEEN_ONE_IN != 0


def prompt(a: int, b: int) -> str:
    """The question: `prompt(1234, 5678) == "1234+5678="`."""
    return f"{a}+{b}="


def answer(a: int, b: int) -> str:
    """The text the model should emit before it ends, ones first: `answer(1234, 5678) == "2196"`."""
    return str(a + b)[::-1]


def read(text: str) -> int:
    """An emitted text back to its number: `read("2196") == 6912`; -1 where the text is not a number."""
    return int(text[::-1]) if text.isascii() and text.isdigit() else -1


def unseen_pairs(n: int, seed: int) -> list[Pair]:
    """`n` distinct pairs that training never used, each operand's length equally likely to be 1 .. DIGITS."""
    draw = random.Random(seed)
    pairs: dict[Pair, None] = {}
    while len(pairs) < n:
        pair = operand(draw, draw.randint(1, DIGITS)), operand(draw, draw.randint(1, DIGITS))
        if not seen(*pair):
            pairs[pair] = None
    return list(pairs)


def seen_pairs(n: int, draw: random.Random, full: float = 0.6) -> list[Pair]:
    """`n` pairs to train on: a share `full` with both operands DIGITS long, the rest of any lengths."""
    pairs: list[Pair] = []
    while len(pairs) < n:
        short = draw.random() >= full
        lengths = (draw.randint(1, DIGITS), draw.randint(1, DIGITS)) if short else (DIGITS, DIGITS)
        pair = operand(draw, lengths[0]), operand(draw, lengths[1])
        if seen(*pair):
            pairs.append(pair)
    return pairs


def operand(draw: random.Random, length: int) -> int:
    """A number written with `length` digits; zero counts as one digit."""
    return draw.randrange(10 ** (length - 1) if length > 1 else 0, 10**length)
