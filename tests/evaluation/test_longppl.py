"""LongPPL against a plain loop, and key tokens carried between tokenizers."""

import itertools

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.evaluation.longppl.key_tokens import (
    full_context_nll,
    is_key,
    key_tokens,
    long_perplexity,
    short_context_nll,
    token_ends,
    transfer_keys,
)


def copying(tokens):
    """A model that is sure (0.1) of a token it has seen after the same one, and lost (4.0) otherwise."""
    tokens = np.asarray(tokens)
    seen, nll = set(), []
    for pair in itertools.pairwise(tokens):
        nll.append(0.1 if pair in seen else 4.0)
        seen.add(pair)
    return np.array(nll)


def test_rule_at_its_edges():
    full = np.array([0.0, 0.0, 1.9, 2.0, 0.5])
    short = np.array([2.0, 2.1, 9.0, 9.0, np.nan])
    assert is_key(full, short).tolist() == [False, True, True, False, False]


@pytest.mark.parametrize("bos", [None, 99])
def test_contexts_of_every_token(bos):
    """The model tells, as its NLL, how many tokens it sees before each one."""
    tokens = np.arange(50)
    extra = bos is not None

    def counting(window):
        assert (window[0] == bos) == extra
        return np.arange(1, len(window)) - extra

    full = full_context_nll(counting, tokens, bos)
    np.testing.assert_array_equal(full[1 - extra :], np.arange(50)[1 - extra :])
    short = short_context_nll(counting, tokens, bos, context=20, stride=8)
    assert np.isnan(short[:20]).all() and len(short) == 50
    np.testing.assert_array_equal(short[20:], [20 + (i - 20) % 8 for i in range(20, 50)])


def test_tokens_repeated_from_afar_are_the_key_tokens():
    rng = np.random.default_rng(0)
    far = rng.permutation(40)
    tokens = np.concatenate([far, 100 + rng.permutation(100), far, far[:10]])
    keys = key_tokens(copying, tokens, None, context=64, stride=16)
    want = np.zeros(len(tokens), bool)
    want[141:180] = True  # The first token of the repetition follows another one than the first time.
    want[181:] = False  # The second repetition is near the first: within the short context.
    np.testing.assert_array_equal(keys, want)


def test_losses_of_a_model_equal_those_of_the_published_loop():
    """The loop of the paper's code over logits of transformers, in float64: its windows, slices and shifts."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 40, "hidden_size": 16, "intermediate_size": 24, "num_attention_heads": 2}
    config = transformers.LlamaConfig(**sizes, num_hidden_layers=2, initializer_range=0.5)
    model = transformers.LlamaForCausalLM(config).double().eval()
    tokens = np.random.default_rng(0).integers(0, 40, 101)

    def logits(ids):
        with torch.no_grad():
            return model(torch.asarray(ids)[None]).logits[0]

    def nll(ids):
        scores = torch.log_softmax(logits(ids.astype(np.int64)), -1).numpy()
        return -scores[np.arange(len(ids) - 1), ids[1:]]

    context, stride, full, short = 32, 16, np.full(101, np.nan), np.full(101, np.nan)
    entropy = torch.nn.CrossEntropyLoss(reduction="none")
    ids, all_logits = torch.asarray(tokens), logits(tokens)
    for start in range(0, len(tokens) - context, stride):
        step = min(stride, len(tokens) - start - context)
        new = slice(start + context, start + context + step)
        window = logits(tokens[start : new.stop])
        full[new] = entropy(all_logits[new.start - 1 : new.stop - 1], ids[new])
        short[new] = entropy(window[context - 1 : context + step - 1], ids[new])
    # Float64 of values below 20 through two ways of writing the softmax.
    np.testing.assert_allclose(short_context_nll(nll, tokens, None, context, stride), short, rtol=1e-10)
    np.testing.assert_allclose(full_context_nll(nll, tokens, None)[context:], full[context:], rtol=1e-10)
    # A random model is never sure of anything, so the rule is tried with other numbers.
    want = (short - full > 1e-3) & (full < 5)
    assert 0 < want.sum() < 69
    np.testing.assert_array_equal(
        is_key(full_context_nll(nll, tokens, None), short_context_nll(nll, tokens, None, context, stride), 1e-3, 5),
        want,
    )


def test_perplexities_equal_a_plain_loop():
    rng = np.random.default_rng(1)
    nlls = [rng.gamma(2.0, size=n) for n in (30, 50, 20)]
    nlls[0][0] = np.nan
    keys = [rng.uniform(size=len(nll)) < 0.3 for nll in nlls]
    keys[0][0] = True
    keys[2][:] = False
    result = long_perplexity(nlls, keys)
    chosen = [x for nll, key in zip(nlls, keys) for x, k in zip(nll, key) if k and not np.isnan(x)]
    every = [x for nll in nlls for x in nll if not np.isnan(x)]
    # Sums of at most 100 float64 in another order.
    assert result.long_perplexity == pytest.approx(np.exp(np.mean(chosen)), rel=1e-12)
    assert result.perplexity == pytest.approx(np.exp(np.mean(every)), rel=1e-12)
    assert (result.key_tokens, result.tokens, result.documents) == (len(chosen), 99, 3)
    assert result.interval[0] <= result.long_perplexity <= result.interval[1]
    none = long_perplexity(nlls[:1], [np.zeros(30, bool)])
    assert none.long_perplexity is None and none.interval is None and none.key_tokens == 0


def published_overlap(keys, from_ends, to_ends):
    """What LongPPL's paper does: joins neighbouring key tokens to intervals, and takes the tokens within one."""
    intervals = []
    for start, end, key in zip([0, *from_ends], from_ends, keys):
        if key and intervals and intervals[-1][1] == start:
            intervals[-1][1] = end
        elif key:
            intervals.append([start, end])
    return [any(a <= s and e <= b for a, b in intervals) for s, e in zip([0, *to_ends], to_ends)]


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 40), st.data())
def test_transfer_equals_the_published_intervals(length, data):
    cuts = st.sets(st.integers(1, length), max_size=length)
    from_ends, to_ends = (sorted(data.draw(cuts) | {length}) for _ in range(2))
    keys = np.array(data.draw(st.lists(st.booleans(), min_size=len(from_ends), max_size=len(from_ends))))
    got = transfer_keys(keys, np.array(from_ends), np.array(to_ends))
    assert got.tolist() == published_overlap(keys, from_ends, to_ends)


def test_token_ends_in_llama2_tokens(shared):
    tokenizer = load_tokenizer(shared / "data/llama2_tokenizer/tokenizer.model")
    text = "The naïve cat — \U0001f600\U0001f63a — sat.\n\n  Then 12345 日本語 words, " * 20
    tokens = tokenizer.encode(text)
    ends = token_ends(tokenizer, tokens)
    # The whole prefix decoded, which is what stretches stand for; unfinished characters are cut back.
    whole = np.array([len(tokenizer.decode(tokens[: i + 1])) for i in range(len(tokens))])
    np.testing.assert_array_equal(ends, np.minimum.accumulate(whole[::-1])[::-1])
    assert ends[-1] == len(text)
    everything = transfer_keys(np.ones(len(tokens), bool), ends, token_ends(load_tokenizer("bytes"), text.encode()))
    assert everything.sum() == len(text)  # Of the bytes of a character only the first has width.
