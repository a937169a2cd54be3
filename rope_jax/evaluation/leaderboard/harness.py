"""Our model as a model of EleutherAI's lm_eval (extra `[eval]`), which brings the open leaderboard's tasks.

lm = HarnessModel(subject)
results = lm_eval.simple_evaluate(lm, tasks=[...])
"""

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window

from rope_jax.errors import InputError
from rope_jax.evaluation.benchmark import Subject
from rope_jax.evaluation.nll import make_continuation_scores, make_next_token_scores
from rope_jax.model.generate import Stops, bucket_length
from rope_jax.sharding import row_sharding

# What lm_eval's own models take where a task does not say.
MAX_GEN_TOKENS = 256


class HarnessModel(TemplateLM):
    """A model with its tokenizer, as lm_eval asks for it.

    Tokenizes and cuts as lm_eval's `hf` model does, so that scores compare: BOS in front where the tokenizer has one,
    and what is too long loses its beginning. Greedy only, which is all that the tasks here ask for.
    """

    def __init__(self, subject: Subject):
        """Prepares the model; its tokenizer needs a BOS or an EOS."""
        super().__init__()
        setting = subject.setting
        tokenizer, sharding = setting.tokenizer, row_sharding(setting.mesh)
        if tokenizer.bos_id is None and tokenizer.eos_id is None:
            raise InputError("the tokenizer has neither BOS nor EOS: lm_eval needs one to put before a first token")
        self.tokenizer = None  # lm_eval would look for a chat template in it, and these are base models
        self.max_length = max(setting.lengths)
        self.batch_size = setting.batch
        self._tokenizer = tokenizer
        self._progress = setting.progress("leaderboard")
        weights = (subject.params, subject.rope)
        self._scores = partial(make_continuation_scores(setting.model, setting.chunk, sharding), *weights)
        self._next_token = partial(make_next_token_scores(setting.model, sharding), *weights)
        self._generate = partial(subject.generate, batch_size=setting.batch)

    @property
    def eot_token_id(self) -> int:
        """EOS, or BOS where there is none."""
        return next(i for i in (self._tokenizer.eos_id, self._tokenizer.bos_id) if i is not None)

    @property
    def prefix_token_id(self) -> int:
        """The token in front of the first one of a text: BOS, or EOS where there is none."""
        return next(i for i in (self._tokenizer.bos_id, self._tokenizer.eos_id) if i is not None)

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs) -> list[int]:
        """Token ids, with BOS in front unless told otherwise."""
        ids = self._tokenizer.encode(string).tolist()
        bos = self._tokenizer.bos_id
        return ids if add_special_tokens is False or bos is None else [bos, *ids]

    def _loglikelihood_tokens(self, requests, disable_tqdm: bool = False, **kwargs) -> list[tuple[float, bool]]:
        """Sum of log likelihoods, and whether greedy, for each `(texts, context ids, continuation ids)`."""
        rows, targets = [], []
        for _, context, continuation in requests:
            if not 1 <= len(continuation) <= self.max_length:
                raise InputError(
                    f"a continuation has {len(continuation)} tokens: it must have 1 to max_length = {self.max_length}"
                )
            rows.append(tuple((*context, *continuation)[-(self.max_length + 1) :][:-1]))
            targets.append(continuation)
        answers: list[tuple[float, bool]] = [(0.0, False)] * len(rows)
        self._score_single(rows, targets, answers)
        self._score_longer(rows, targets, answers)
        for (texts, _, _), answer in zip(requests, answers):
            if texts is not None:
                self.cache_hook.add_partial("loglikelihood", texts, answer)
        return answers

    def _score_single(self, rows, targets, answers):
        """Continuations of one token; all that follow the same row, as the letters of a choice, share one pass."""
        followers: dict[tuple, list[int]] = {}
        for i, (row, target) in enumerate(zip(rows, targets)):
            if len(target) == 1:
                followers.setdefault(row, []).append(i)
        for batch in self._batches(list(followers), key=len):
            log_probabilities = np.asarray(self._next_token(*self._padded(batch)))
            for row, values in zip(batch, log_probabilities):
                likeliest = int(np.argmax(values))
                for i in followers[row]:
                    answers[i] = float(values[targets[i][0]]), likeliest == targets[i][0]

    def _score_longer(self, rows, targets, answers):
        longer = [i for i, target in enumerate(targets) if len(target) > 1]
        # Continuations of like lengths together as well: a batch looks at as many tokens as its longest has.
        for batch in self._batches(longer, key=lambda i: (bucket_length(len(rows[i])), len(targets[i]))):
            tokens, first = self._padded([rows[i] for i in batch])
            # Powers of two: compiling for another width costs more than a few positions too many.
            longest = max(len(targets[i]) for i in batch)
            width = min(max(32, 1 << (longest - 1).bit_length()), tokens.shape[1])
            wanted = np.full((self.batch_size, width), -1, np.int32)
            for row, i in enumerate(batch):
                wanted[row, width - len(targets[i]) :] = targets[i]
            values, greedy = map(np.asarray, self._scores(tokens, first, wanted))
            for i, of_row, of_greedy in zip(batch, values, greedy):
                answers[i] = float(of_row.sum()), bool(of_greedy.all())

    def loglikelihood_rolling(self, requests, disable_tqdm: bool = False) -> list[float]:
        """Log likelihood of whole texts, in windows of `max_length` that do not overlap."""
        windows, owners = [], []
        for i, request in enumerate(requests):
            (text,) = request.args
            for window in get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self.max_length,
                context_len=1,
            ):
                windows.append((None, *make_disjoint_window(window)))
                owners.append(i)
        totals = [0.0] * len(requests)
        for owner, (value, _) in zip(owners, self._loglikelihood_tokens(windows)):
            totals[owner] += value
        for request, total in zip(requests, totals):
            self.cache_hook.add_partial("loglikelihood_rolling", request.args, total)
        return totals

    def generate_until(self, requests, disable_tqdm: bool = False) -> list[str]:
        """Greedy continuations, cut before their first stop string."""
        answers = [""] * len(requests)
        kinds: dict[str, list[int]] = {}
        for i, request in enumerate(requests):
            kinds.setdefault(repr(request.args[1]), []).append(i)
        for members in kinds.values():
            options: dict[str, Any] = dict(normalize_gen_kwargs(requests[members[0]].args[1], MAX_GEN_TOKENS))
            if options["do_sample"]:
                raise InputError("the task asks for sampling (do_sample), and decoding here is greedy: set it to false")
            room = self.max_length - options["max_gen_toks"]
            if room < 1:
                raise InputError(
                    f"the task generates {options['max_gen_toks']} tokens of max_length = {self.max_length}, "
                    "which leaves no room for a prompt: give a larger max_length or a smaller max_gen_toks"
                )
            strings = [text for text in options["until"] if text]
            stops = Stops([self.eot_token_id], strings, self._tokenizer.decode)
            prompts = [np.asarray(self.tok_encode(requests[i].args[0])[-room:], np.int32) for i in members]
            for batch in self._generate(prompts, options["max_gen_toks"], stops=stops, progress=self._progress):
                for row, tokens in batch:
                    i = members[row]
                    answers[i] = postprocess_generated_text(self._tokenizer.decode(tokens), strings, None)
                    self.cache_hook.add_partial("generate_until", requests[i].args, answers[i])
        return answers

    def _batches(self, items: list, key) -> Iterable[list]:
        """Batches of items that are alike; the largest first, so that what does not fit into memory fails at once."""
        items = sorted(items, key=key, reverse=True)
        return self._progress([items[i : i + self.batch_size] for i in range(0, len(items), self.batch_size)])

    def _padded(self, rows: Sequence[Sequence[int]]):
        """Tokens int32 `[batch_size, T]`, padded in front, and the column where each row begins."""
        width = bucket_length(max(map(len, rows)))
        tokens = np.zeros((self.batch_size, width), np.int32)
        first = np.full(self.batch_size, width - 1, np.int32)
        for i, row in enumerate(rows):
            first[i] = width - len(row)
            tokens[i, first[i] :] = row
        return tokens, first
