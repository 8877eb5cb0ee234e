"""Texts for tests: random words, copies of them that differ a little, and brute-force answers to compare with."""

import random
from collections import Counter
from itertools import combinations

_LETTERS = random.Random(0)
WORDS = ["".join(_LETTERS.choices("abcdefghijklmnoprstuw", k=_LETTERS.randrange(3, 9))) for _ in range(2000)]


def random_texts(count: int, seed: int, words: int = 12) -> list[str]:
    generator = random.Random(seed)
    return [" ".join(generator.choices(WORDS, k=words)) for _ in range(count)]


def varied(text: str, seed: int, changes: int = 1) -> str:
    """`text` with some of its characters replaced."""
    generator = random.Random(seed)
    characters = list(text)
    for _ in range(changes):
        characters[generator.randrange(len(characters))] = generator.choice("xyz")
    return "".join(characters)


def shingle_sets(texts: list[str], size: int, boilerplate_share: float) -> list[set[str]]:
    """By the definition in docs/data.md, with one counter over everything."""
    sets = [{text[i : i + size] for i in range(len(text) - size + 1)} or {text} for text in texts]
    counts = Counter(shingle for shingles in sets for shingle in shingles)
    limit = max(boilerplate_share * len(texts), 10)
    boilerplate = {shingle for shingle, count in counts.items() if count > limit}
    return [(shingles - boilerplate) or shingles for shingles in sets]


def near_pairs(texts: list[str], size: int, similarity: float, boilerplate_share: float) -> set[tuple[int, int]]:
    """Every pair of near-duplicates, from comparing all pairs."""
    sets = shingle_sets(texts, size, boilerplate_share)
    return {(i, j) for i, j in combinations(range(len(texts)), 2) if len(sets[i] & sets[j]) >= similarity * len(sets[i] | sets[j]) - 1e-12}


def components(count: int, pairs: set[tuple[int, int]]) -> list[int]:
    """For each text the smallest one it is linked with through a chain."""
    smallest = list(range(count))
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            low = min(smallest[i], smallest[j])
            changed |= smallest[i] != low or smallest[j] != low
            smallest[i] = smallest[j] = low
    return smallest
