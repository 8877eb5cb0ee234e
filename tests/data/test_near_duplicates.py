"""Clusters of near-duplicates against comparing every pair, templates, short texts, and large clusters."""

import operator

import numpy as np
import pyarrow as pa
import pytest
from datasketch import MinHash

from pipeline.data import near_duplicates
from pipeline.data.near_duplicates import band_width, cluster_texts
from pipeline.params import NearDuplicateParams
from tests.data.recombined import components, near_pairs, random_texts, varied


def clusters(texts, *, similarity=0.8, size=5, boilerplate_share=0.1, seed=0):
    params = NearDuplicateParams(similarity=similarity, shingle_characters=size, boilerplate_share=boilerplate_share)
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    return cluster_texts(column, params=params, seed=seed)


def family(seed):
    """A few hundred texts of which many are variations of others, with a word or two changed, cut off or added."""
    texts = random_texts(120, seed)
    texts += [varied(text, seed + i, changes=1 + i % 6) for i, text in enumerate(texts[:100])]
    texts += [varied(text, seed + i, changes=1 + i % 3) for i, text in enumerate(texts[120:180])]
    texts += [text[: len(text) - 4 * (i % 8)] for i, text in enumerate(texts[:40])] + [f"{text} {text[:7]}" for text in texts[40:60]]
    return list(dict.fromkeys(texts))


@pytest.mark.parametrize(("similarity", "size"), [(0.8, 5), (0.9, 5), (0.6, 3), (0.7, 8), (1.0, 5)])
def test_clusters_are_those_of_all_pairs(similarity, size):
    for seed in range(3):
        texts = family(seed)
        pairs = near_pairs(texts, size, similarity, 0.1)
        assert similarity == 1.0 or len(pairs) > 10
        found = clusters(texts, similarity=similarity, size=size, seed=seed)
        assert found.cluster.tolist() == components(len(texts), pairs)
        assert size < 5 or found.compared < len(texts) ** 2 / 20


def test_a_template_is_no_similarity():
    """Texts of which nine tenths are the same for all, and what differs is really different."""
    payloads = random_texts(60, 1, words=2)
    texts = [f"dear customer of the northern line your question about {payload} has been forwarded to our team" for payload in payloads]
    assert near_pairs(texts, 5, 0.7, 1.0)  # without the rule they would be near-duplicates
    found = clusters(texts, similarity=0.7)
    assert found.cluster.tolist() == list(range(60))
    assert found.boilerplate_shingles > 50
    copies = [*texts, texts[0].replace("dear", "dearest")]
    assert clusters(copies, similarity=0.7).cluster.tolist() == [*range(60), 0]


def test_a_few_copies_are_no_template():
    texts = [
        *random_texts(20, 2),
        *(varied("the same words in nine of thirty texts are copies and no template at all", i) for i in range(9)),
    ]
    assert clusters(texts, similarity=0.7).cluster.tolist() == [*range(20), *[20] * 9]


def test_short_texts():
    texts = ["ok", "no", "thank you", "thank you x", "thanks", "x", "great flight", "great flights", "it", "its"]
    expected = components(len(texts), near_pairs(texts, 5, 0.8, 0.1))
    assert clusters(texts).cluster.tolist() == expected == [0, 1, 2, 3, 4, 5, 6, 6, 8, 9]


def test_texts_of_one_template_and_nothing_else_stay_comparable():
    texts = ["a" * length for length in range(5, 40)]
    assert clusters(texts).cluster.tolist() == [0] * 35  # one shingle each, the same


def test_no_text_and_one_text():
    assert clusters([]).cluster.tolist() == []
    assert clusters(["alone"]).cluster.tolist() == [0]


def test_any_character_is_a_character():
    texts = ["\U0001f600 smile\u0301 नमस्ते दुनिया " * 3, "\U0001f600 smile\u0301 नमस्ते दुनिया " * 3 + "x", "\0\0\0\0\0\0", "\x1f"]
    assert clusters(texts, similarity=0.8).cluster.tolist() == [0, 0, 2, 3]


def test_a_cluster_larger_than_its_neighbourhoods_is_linked():
    words = random_texts(1, 3, words=40)[0]
    texts = list(dict.fromkeys(varied(words, i) for i in range(3 * near_duplicates.NEIGHBOURS)))
    assert len(texts) > 2 * near_duplicates.NEIGHBOURS
    found = clusters(texts, boilerplate_share=1.0)
    assert set(found.cluster.tolist()) == {0}
    assert found.compared < len(texts) * near_duplicates.NEIGHBOURS  # a fraction of all pairs


def test_another_order_of_texts_gives_the_same_clusters():
    texts = family(5)
    order = np.random.default_rng(0).permutation(len(texts))
    first, second = clusters(texts).cluster, clusters([texts[i] for i in order]).cluster
    groups = {frozenset(np.flatnonzero(first == number).tolist()) for number in set(first.tolist())}
    assert {frozenset(order[second == number].tolist()) for number in set(second.tolist())} == groups


def test_signatures_are_those_of_datasketch():
    texts = random_texts(7, 0)
    column = pa.chunked_array([pa.array(texts, pa.large_string())])
    params = NearDuplicateParams(similarity=0.8, shingle_characters=5, boilerplate_share=1.0)
    found = near_duplicates._signatures(column, np.empty(0, dtype="uint32"), params, 3)
    for row, text in zip(found, texts, strict=True):
        sketch = MinHash(near_duplicates.PERMUTATIONS, seed=3, hashfunc=operator.index)
        for shingle in near_duplicates._shingles(pa.array([text]), 5).hashes.tolist():
            sketch.update(shingle)
        assert (row == sketch.hashvalues.astype("uint16")).all()


def test_sets_have_a_hash_for_each_shingle():
    texts = [*random_texts(50, 4), "abc", "", "aaaaaaaaa"]
    sets = near_duplicates._shingles(pa.array(texts), 5)
    seen: dict[str, int] = {}
    for index, text in enumerate(texts):
        shingles = {text[i : i + 5] for i in range(len(text) - 4)} or {text}
        hashes = sets.hashes[sets.starts[index] : sets.starts[index + 1]].tolist()
        assert len(set(hashes)) == len(hashes) == len(shingles)
        for shingle in shingles:
            alone = near_duplicates._shingles(pa.array([shingle]), 5).hashes.tolist()
            assert alone[0] in hashes
            assert seen.setdefault(shingle, alone[0]) == alone[0]
    assert len(set(seen.values())) == len(seen)


@pytest.mark.parametrize("similarity", [0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 1.0])
def test_bands_miss_as_rarely_as_stated(similarity):
    width = band_width(similarity)
    bands = near_duplicates.PERMUTATIONS // width
    assert (1 - similarity**width) ** bands <= near_duplicates.MISSED or width == 1
    wider = width + 1
    assert (
        wider > near_duplicates.PERMUTATIONS or (1 - similarity**wider) ** (near_duplicates.PERMUTATIONS // wider) > near_duplicates.MISSED
    )
