"""The benchmark of perplexities: over a sliding window at every length, and by position at the longest."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import partial

from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Measurement, Setting, Subject, check_positive
from rope_jax.evaluation.comparison import compare_perplexities, regions
from rope_jax.evaluation.identity import digest
from rope_jax.evaluation.perplexity.positions import perplexity_by_position, position_edges
from rope_jax.evaluation.perplexity.sliding import CONVENTIONS, perplexity

# Raised when the same texts and settings give other results.
PROTOCOL = 3


@dataclasses.dataclass(frozen=True)
class PerplexityBenchmark(Measurement):
    """Perplexity of texts.

    Attributes:
        stride: tokens between windows; a window shorter than twice that uses half its length.
        conventions: how NLLs are averaged, some of `CONVENTIONS`.
    """

    stride: int = 256
    conventions: tuple[str, ...] = CONVENTIONS

    def __post_init__(self):
        check_positive(self, "stride")
        for convention in self.conventions:
            if convention not in CONVENTIONS:
                raise InputError(f"`conventions` has {convention!r}: use {', '.join(map(repr, CONVENTIONS))}")

    def check(self, setting: Setting) -> dict[str, InputError]:
        window, documents = max(setting.lengths), setting.texts.position
        longest = max((len(document) for document in documents), default=0)
        if longest + (setting.tokenizer.bos_id is not None) < window:
            raise InputError(
                f"no document fills a window of `lengths` = {window} tokens: the longest has {longest}. Name longer "
                "texts in `path`, or raise `document_tokens` and `position_tokens` if they cut them",
                field="path",
            )
        return {}

    def of(self, setting: Setting) -> dict[str, str]:
        protocol = digest(PROTOCOL, self.stride, _edges(setting), setting.seed)
        return {"texts": setting.texts.digest, "protocol": protocol}

    def stages(self, subject: Subject, shared: Mapping[str, dict]) -> dict[str, Callable[[], dict]]:
        """`"WINDOW CONVENTION"` for every window and convention, and `"by_position"`."""
        setting = subject.setting
        texts, longest = setting.texts, max(setting.lengths)
        common = {"bos_id": setting.tokenizer.bos_id, "batch_size": setting.batch, "seed": setting.seed}

        def sliding(window: int, convention: str) -> dict:
            result = perplexity(
                subject.score,
                texts.sliding,
                window,
                min(self.stride, window // 2),
                convention=convention,
                document_bytes=texts.sliding_bytes,
                words=texts.words,
                progress=setting.progress(f"perplexity at {window}, {convention}"),
                **common,
            )
            return dataclasses.asdict(result)

        def by_position() -> dict:
            result = perplexity_by_position(
                subject.score,
                texts.position,
                longest,
                edges=_edges(setting),
                progress=setting.progress("perplexity by position"),
                **common,
            )
            return dataclasses.asdict(result)

        stages = {
            f"{window} {convention}": partial(sliding, window, convention)
            for convention in self.conventions
            for window in setting.lengths
        }
        return {**stages, "by_position": by_position}

    def compare(self, records: Mapping[str, dict], reference: Mapping[str, dict], setting: Setting) -> dict:
        return compare_perplexities(records, reference, setting.original, setting.seed)


def _edges(setting: Setting) -> tuple[int, ...]:
    """Edges of the buckets of position, among them those of the regions that are compared."""
    longest = max(setting.lengths)
    ends = regions(longest, setting.original).values()
    return tuple(sorted({*position_edges(longest, setting.original), *(edge for pair in ends for edge in pair)}))
