"""Sentences of running text, needles between them, and sizes that fill a budget."""

import re

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.errors import InputError
from rope_jax.evaluation.haystack import make_haystack, read_haystack
from rope_jax.evaluation.sizing import largest_fit

TEXT = 'Mr. Bennet made  no answer.\n\n"Do you not want to know?" cried his wife. "You want to!" said J. Austen? Yes.'


def sentences(haystack):
    return [" ".join(haystack.words[a:b]) for a, b in zip((0, *haystack.ends), haystack.ends)]


def test_sentences_end_where_a_reader_says():
    assert sentences(make_haystack([TEXT, "No full stop", "Another. one"])) == [
        "Mr. Bennet made no answer.",
        '"Do you not want to know?" cried his wife.',
        '"You want to!" said J. Austen?',
        "Yes.",
        "No full stop",
        "Another. one",
    ]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 130), st.lists(st.floats(0, 100), max_size=4).map(sorted), st.integers(1, 30))
def test_needles_stand_between_sentences_at_their_depths(count, depths, lines):
    haystack = make_haystack([" ".join(f"Line {i} ends." for i in range(lines))])
    needles = [f"NEEDLE{i}." for i in range(len(depths))]
    text = haystack.hide(needles, count, depths)
    bare = re.sub(r"NEEDLE\d\.", "", text).split()
    assert bare == [haystack.words[i % len(haystack.words)] for i in range(count)]
    assert re.findall(r"NEEDLE\d\.", text) == needles
    n = -(-count // 3) or 1  # Sentences, the last of which may be cut short.
    for needle, depth in zip(needles, depths):
        before = re.sub(r"NEEDLE\d\.", "", text[: text.index(needle)]).split()
        assert len(before) == min(3 * int(n * depth / 100), count)


@settings(max_examples=200, deadline=None)
@given(
    st.integers(0, 20),
    st.lists(st.integers(0, 9), min_size=1, max_size=80),
    st.integers(0, 400),
    st.booleans(),
)
def test_largest_fit_is_the_largest(least, steps, budget, limited):
    asked = []

    def count(n):
        asked.append(n)
        rounds, rest = divmod(n, len(steps))
        return 3 + rounds * (sum(steps) + 1) + sum(steps[:rest])

    most = least + 25 if limited else None
    got = largest_fit(count, budget, least, most)
    fitting = [n for n in range(least, least + 500 * len(steps)) if count(n) <= budget and (not limited or n <= most)]
    assert got == (max(fitting) if fitting else None)


def test_largest_fit_needs_few_counts_where_tokens_are_proportional():
    asked = []
    assert largest_fit(lambda n: asked.append(n) or 50 + 3 * n, 16000, 1) == 5316
    assert len(asked) <= 12


def test_folders_json_and_errors(tmp_path):
    (tmp_path / "b.txt").write_text("Second text.")
    (tmp_path / "a.jsonl").write_text('{"text": "First text."}\n')
    (tmp_path / "c.json").write_text('{"text": "Essays. All of them."}')
    assert read_haystack(tmp_path, 100).words == ("First", "text.", "Second", "text.")
    assert read_haystack(tmp_path, 2).words == ("First", "text.")
    assert read_haystack(tmp_path / "c.json", 9).ends == (1, 4)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match=r"no \.txt or \.jsonl"):
        read_haystack(tmp_path / "empty", 1)
    with pytest.raises(InputError, match=r"absent is missing(.|\n)*git clone"):
        read_haystack(tmp_path / "absent", 1)
    (tmp_path / "c.json").write_text('{"text": " \\n"}')
    with pytest.raises(InputError, match=r"c\.json has no words"):
        read_haystack(tmp_path / "c.json", 1)
