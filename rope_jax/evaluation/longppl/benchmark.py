"""The benchmark LongPPL: key tokens by an evaluator, and the model's losses on them."""

import dataclasses
from collections.abc import Callable, Mapping
from functools import cache, partial
from pathlib import Path

import numpy as np
from jax.sharding import Mesh

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Measurement, Setting, Subject, check_positive
from rope_jax.evaluation.comparison import paired_difference
from rope_jax.evaluation.identity import digest, weights_digest
from rope_jax.evaluation.longppl.key_tokens import (
    TokenNll,
    full_context_nll,
    key_tokens,
    long_perplexity,
    token_ends,
    transfer_keys,
)
from rope_jax.evaluation.nll import make_token_nll
from rope_jax.interop.hub import resolve_model
from rope_jax.interop.huggingface import check_model, read_model
from rope_jax.model.backends import check_backend
from rope_jax.model.generate import bucket_length
from rope_jax.model.llama import param_shardings
from rope_jax.sharding import row_sharding, shards

# Raised when the same texts and settings give other results.
PROTOCOL = 2


@dataclasses.dataclass(frozen=True)
class LongPpl(Measurement):
    """LongPPL (Fang et al., arXiv 2410.23771).

    Attributes:
        evaluator: folder or hub id of the model that finds the key tokens, the same for all models compared.
        context: tokens of its short context.
    """

    evaluator: str = ""
    context: int = 4096

    def __post_init__(self):
        check_positive(self, "context")

    def check(self, setting: Setting) -> dict[str, InputError]:
        folder = self._folder()
        found, own = check_model(folder), load_tokenizer(folder)
        check_backend(setting.compute(found.config))
        most = max((len(own.encode(setting.tokenizer.decode(d))) for d in _documents(setting)), default=0)
        most += own.bos_id is not None
        if most > found.config.context:
            raise InputError(
                f"`evaluator` is {self.evaluator}, which reads {found.config.context} tokens, and the texts up to "
                f"`lengths` = {max(setting.lengths)} take {most} of its tokens: name a model of a longer context, or "
                "evaluate at shorter lengths"
            )
        return {}

    def of(self, setting: Setting) -> dict[str, str]:
        protocol = digest(PROTOCOL, self.context, max(setting.lengths), setting.seed)
        return {"texts": setting.texts.digest, "evaluator": weights_digest(self._folder()), "protocol": protocol}

    def shared(self, setting: Setting) -> dict[str, Callable[[], dict]]:
        """The key tokens of each document, as indices into the evaluated model's tokens."""
        folder = self._folder()
        found, own = check_model(folder), load_tokenizer(folder)

        @cache  # read only if a document is left to do
        def evaluator_nll() -> TokenNll:
            model = setting.compute(found.config)
            params = read_model(folder, param_shardings(model, setting.mesh), model.param_dtype).params
            score = make_token_nll(model, setting.chunk, row_sharding(setting.mesh))
            return _row_nll(partial(score, params, found.rope), setting.mesh)

        def keys(document: np.ndarray) -> dict:
            ids = own.encode(setting.tokenizer.decode(document))
            marked = key_tokens(evaluator_nll(), ids, own.bos_id, self.context)
            moved = transfer_keys(marked, token_ends(own, ids), token_ends(setting.tokenizer, document))
            return {"keys": np.flatnonzero(moved).tolist()}

        return {str(i): partial(keys, document) for i, document in enumerate(_documents(setting))}

    def stages(self, subject: Subject, shared: Mapping[str, dict]) -> dict[str, Callable[[], dict]]:
        """`"longppl"`: LongPPL, and the perplexity of all tokens of the same texts."""
        setting = subject.setting
        documents = _documents(setting)

        def measure() -> dict:
            nll, bos = _row_nll(subject.score, setting.mesh), setting.tokenizer.bos_id
            nlls = [full_context_nll(nll, document, bos) for document in setting.progress("LongPPL")(documents)]
            keys = [np.isin(np.arange(len(d)), shared[str(i)]["keys"]) for i, d in enumerate(documents)]
            return dataclasses.asdict(long_perplexity(nlls, keys, setting.seed))

        return {"longppl": measure}

    def compare(self, records: Mapping[str, dict], reference: Mapping[str, dict], setting: Setting) -> dict:
        (ours, tokens), (theirs, _) = (np.transpose(r["longppl"]["by_document"]) for r in (records, reference))
        return {"longppl": paired_difference(ours, theirs, tokens, setting.seed).to_json()}

    def _folder(self) -> Path:
        if not self.evaluator:
            raise InputError(
                "`evaluator` is empty: name the model whose losses tell which tokens need a long context, a folder or "
                "hub id, the same for all models that are compared"
            )
        try:
            folder = resolve_model(self.evaluator)
        except InputError as error:
            raise InputError(str(error.renamed({"path": "`evaluator`"})), field="evaluator") from None
        check_model(folder)
        load_tokenizer(folder)
        return folder


def _documents(setting: Setting) -> list[np.ndarray]:
    """The beginnings of the documents that a model of the longest length reads whole."""
    length = max(setting.lengths) - (setting.tokenizer.bos_id is not None)
    return [document[:length] for document in setting.texts.sliding]


def _row_nll(score: Callable[[np.ndarray, np.ndarray], np.ndarray], mesh: Mesh) -> TokenNll:
    """NLL of one row at a time; rows are padded to few lengths."""
    rows = shards(mesh, "rows")

    def nll(tokens: np.ndarray) -> np.ndarray:
        # Every device needs a row; the others are empty.
        padded = np.zeros((rows, bucket_length(len(tokens))), np.int32)
        padded[0, : len(tokens)] = tokens
        wanted = np.zeros(padded.shape, bool)
        wanted[0, : len(tokens) - 1] = True
        return np.asarray(score(padded, wanted))[0, : len(tokens) - 1]

    return nll
