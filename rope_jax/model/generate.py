"""Greedy continuation of prompts of any lengths, in batches.

Prompts of a batch end in the same slot of the KV cache, with padding in front that nothing reads. The host feeds
prompts a chunk at a time and grows the cache as it fills, through few shapes, so that few functions are compiled.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from rope_jax.errors import InputError
from rope_jax.model.cache import empty_cache, grown
from rope_jax.model.config import LlamaConfig
from rope_jax.model.decode import SEGMENT, Decoder, Limits, decode, decoding_weights, prefill
from rope_jax.rope.embedding import ScaleVector


@dataclasses.dataclass(frozen=True)
class Stops:
    """What ends a continuation before its length does."""

    tokens: Collection[int] = ()  # ids that end a row; they are not part of the answer
    strings: Sequence[str] = ()  # the answer keeps the tokens up to the one that completes a string
    decode: Callable[[Sequence[int]], str] | None = None  # from token ids to text; needed for `strings`
    min_new_tokens: int = 0  # produced before one of `tokens` may come; until then they have no probability

    def __post_init__(self):
        if isinstance(self.strings, str) or "" in self.strings:
            message = f"`strings` is {self.strings!r}: it must be a list of texts, none of them empty"
            raise InputError(message, field="strings")
        if self.strings and self.decode is None:
            raise InputError("`strings` needs `decode` of the tokenizer", field="decode")


def greedy(
    params,
    config: LlamaConfig,
    rope: ScaleVector,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int | Sequence[int],
    **options,
) -> list[np.ndarray]:
    """The most likely continuation of each prompt, one token at a time.

    Returns:
        int32 `[<= max_new_tokens]` new tokens of each prompt, in the order of `prompts`; the arguments are those of
        `greedy_batches`.
    """
    answers: list[np.ndarray] = [np.zeros(0, np.int32)] * len(prompts)
    for batch in greedy_batches(params, config, rope, prompts, max_new_tokens, **options):
        for row, tokens in batch:
            answers[row] = tokens
    return answers


def greedy_batches(
    params,
    config: LlamaConfig,
    rope: ScaleVector,
    prompts: Sequence[np.ndarray],
    max_new_tokens: int | Sequence[int],
    *,
    stops: Stops = Stops(),
    batch_size: int | None = None,
    chunk: int = 512,
    cache_dtype: str | None = None,
    cache_sharding: NamedSharding | None = None,
    progress: Callable[[Iterable], Iterable] = iter,
) -> Iterator[list[tuple[int, np.ndarray]]]:
    """Greedy continuations, batch by batch as they complete, so that a caller can save them.

    The other rows of its batch change a row by rounding at most: padding is masked, positions are the row's own.

    Args:
        params: parameters of `Llama`, without boxes, sharded or not.
        prompts: int `[length]` each, at least one token; BOS included where the model expects it.
        max_new_tokens: tokens that every prompt, or each one, may get; at least 1.
        stops: what ends a row earlier; a batch completes when all its rows have ended.
        batch_size: prompts decoded together, of neighbouring lengths; default all of them.
        chunk: prompt tokens of a prefill, a multiple of 16; bounds the memory of activations. Kernels of attention
            (`config.attention` other than 'cpu') read whole prompts.
        cache_dtype: of keys and values; default the computation dtype.
        cache_sharding: of the cache, from `rope_jax.sharding.cache_sharding`; default one device.
        progress: wraps the iterable of batches, for instance `tqdm`.

    Yields:
        For each batch, pairs of a prompt's index and its int32 new tokens, without the stop token.
    """
    lengths = np.array([len(prompt) for prompt in prompts], np.int64)
    limits = np.broadcast_to(np.asarray(max_new_tokens, np.int64), lengths.shape)
    _require(np.all(limits >= 1), "max_new_tokens", f"is {limits.min(initial=1)}: it must be at least 1")
    _require(batch_size is None or batch_size >= 1, "batch_size", f"is {batch_size}: it must be at least 1")
    _require(chunk >= 16 and chunk % 16 == 0, "chunk", f"is {chunk}: it must be a positive multiple of 16")
    size = config.vocab_size
    for i, prompt in enumerate(prompts):
        _require(len(prompt), "prompts", f"has an empty prompt, number {i}: decoding needs a token to start from")
        known = np.min(prompt) >= 0 and np.max(prompt) < size
        _require(known, "prompts", f"has a token in prompt {i} that is not in the model's vocabulary of {size}")
    known = all(0 <= token < size for token in stops.tokens)
    _require(known, "stops", f"has tokens {sorted(stops.tokens)}: they must be in the model's vocabulary of {size}")
    if not len(prompts):
        return
    batch_size = batch_size or len(prompts)
    order = np.lexsort((limits, lengths))
    replicated = None if cache_sharding is None else NamedSharding(cache_sharding.mesh, PartitionSpec())
    decoder = Decoder(decoding_weights(params, config), rope, config, replicated)
    run = _Run(decoder, stops, chunk, cache_dtype or config.dtype, cache_sharding)
    # The longest first: what does not fit into memory fails at once.
    for start in progress(range(0, len(prompts), batch_size)[::-1]):
        rows = order[start : start + batch_size]
        answers = run.batch([prompts[row] for row in rows], limits[rows], batch_size)
        yield [(int(row), answer) for row, answer in zip(rows, answers)]


def bucket_length(length: int) -> int:
    """The padded length: of four lengths per octave, from 16 up, the smallest that holds `length`, at least 1.

    At most a fifth is padding above 64.
    """
    step = max(16, 2 ** (length.bit_length() - 3))
    return -(-length // step) * step


def _require(condition, argument, problem):
    if not condition:
        raise InputError(f"`{argument}` {problem}")


@dataclasses.dataclass(frozen=True)
class _Run:
    """What all batches share, and the host's side of decoding one."""

    decoder: Decoder
    stops: Stops
    chunk: int
    cache_dtype: str
    cache_sharding: NamedSharding | None

    def batch(self, prompts, limits, batch_size) -> list[np.ndarray]:
        """New tokens of each prompt."""
        stops = np.zeros(self.decoder.config.vocab_size, bool)
        stops[list(self.stops.tokens)] = True
        least, most = self.stops.min_new_tokens, int(limits.max())
        answers = [_Answer(int(limit), self.stops) for limit in limits]
        left = np.zeros(batch_size, np.int32)

        token, cache = self._prefill(prompts, batch_size, most, stops & (least > 0))
        length, produced = int(cache.used), 1
        room = bucket_length(length + most - 1)
        new = np.asarray(token)[:, None]
        while True:
            left[: len(answers)] = [answer.take(row) for answer, row in zip(answers, new)]
            if not left.any():
                return [np.asarray(answer.tokens, np.int32) for answer in answers]
            used = length + produced - 1
            steps = min(SEGMENT, int(left.max()))
            if used + steps > cache.slots:
                cache = grown(cache, _slots(used + steps, room))
            limits = Limits(self._spread(left), stops, np.int32(steps), np.int32(least - produced))
            new, token, cache = decode(self.decoder, token, cache, limits)
            new = np.asarray(new)[:, :steps]
            produced += steps

    def _prefill(self, prompts, batch_size, limit, banned):
        """The first new token and the cache after the prompts."""
        longest = max(map(len, prompts))
        kernel = self.decoder.config.attention != "cpu"
        chunk = bucket_length(longest) if kernel else self.chunk
        whole = (longest - 1) // chunk
        head = min(bucket_length(longest - whole * chunk), chunk)
        length = head + whole * chunk
        tokens = np.zeros((batch_size, length), np.int32)
        first = np.full(batch_size, length - 1, np.int32)
        for row, prompt in enumerate(prompts):
            first[row] = length - len(prompt)
            tokens[row, first[row] :] = prompt
        slots = _slots(length + min(SEGMENT, limit - 1), bucket_length(length + limit - 1))
        cache = empty_cache(self.decoder.config, self._spread(first), slots, self.cache_dtype, self.cache_sharding)
        token, start = None, 0
        for end in range(head, length + 1, chunk):
            token, cache = prefill(self.decoder, self._spread(tokens[:, start:end]), cache, banned, whole=kernel)
            start = end
        return token, cache

    def _spread(self, rows):
        """Rows of a batch on the devices that hold their cache."""
        if self.cache_sharding is None:
            return rows
        spec = PartitionSpec(self.cache_sharding.spec[0])
        return jax.device_put(rows, NamedSharding(self.cache_sharding.mesh, spec))


def _slots(needed, most):
    """Slots of a cache that holds what is needed: two sizes per octave, for few shapes, or the `most` ever."""
    power = 1 << (needed - 1).bit_length()
    return min(power * 3 // 4 if needed <= power * 3 // 4 else power, most)


class _Answer:
    """What one row has produced, and whether it may produce more."""

    def __init__(self, limit: int, stops: Stops):
        self.tokens: list[int] = []
        self.left = limit
        self.stops = stops

    def take(self, new) -> int:
        """Takes newly decoded tokens until the row ends; gives how many more may come."""
        before = len(self.tokens)
        for token in new.tolist():
            if not self.left:
                break
            if token in self.stops.tokens:
                self.left = 0
            else:
                self.tokens.append(token)
                self.left -= 1
        if self.stops.strings and len(self.tokens) > before:
            self._cut(before)
        return self.left

    def _cut(self, before):
        """Ends after the first token with which the text holds a stop string."""
        decode = self.stops.decode
        assert decode is not None  # `Stops` checks it

        def stopped(count):
            text = decode(self.tokens[:count])
            return any(string in text for string in self.stops.strings)

        if stopped(len(self.tokens)):
            count = next(filter(stopped, range(before + 1, len(self.tokens) + 1)))
            del self.tokens[count:]
            self.left = 0
