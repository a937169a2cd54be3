"""LongBench-E's prompts, rows and truncation."""

import dataclasses
import gzip
import hashlib
import json
from pathlib import Path

import pytest
import sentencepiece

from rope_jax.data.tokenizer import load_tokenizer
from rope_jax.errors import InputError
from rope_jax.evaluation.longbench.benchmark import LongBench, longbench_samples, truncate_middle
from rope_jax.evaluation.longbench.prompts import harness_prompts, load_prompts, official_prompts
from rope_jax.evaluation.longbench.rows import read_rows
from rope_jax.evaluation.longbench.scoring import bucket_scores, read_scored
from rope_jax.evaluation.longbench.sets import SETS
from rope_jax.evaluation.sample import from_json

ROW = {"input": "Who?", "context": "It was {Ada}.", "answers": ["Ada"], "length": 4000, "all_classes": None, "_id": "x"}


OFFICIAL = json.loads((Path(__file__).parents[2] / "golden/longbench_e.json").read_text())["sets"]
TEMPLATES = dict.fromkeys(SETS, "Read: {context}\n{input}\nAnswer:")


def test_sets_generate_as_many_tokens_as_the_official_config():
    assert {name: kind.max_new_tokens for name, kind in SETS.items()} == {
        name: row["max_new_tokens"] for name, row in OFFICIAL.items()
    }


def test_harness_prompts_equal_the_official_ones():
    """To the letter, white space included."""
    lm_eval = pytest.importorskip("lm_eval", reason="the extra [eval] is not installed")
    prompts = harness_prompts(Path(lm_eval.__file__).parent)
    hashes = {name: hashlib.sha256(prompt.encode()).hexdigest() for name, prompt in prompts.items()}
    assert hashes == {name: row["template_sha256"] for name, row in OFFICIAL.items()}


def test_prompts_of_the_data_folder_come_first(tmp_path):
    (tmp_path / "config").mkdir()
    mine = {name: "{context} and {input}" for name in SETS}
    (tmp_path / "config/dataset2prompt.json").write_text(json.dumps(mine))
    assert load_prompts(tmp_path) == mine


@pytest.mark.parametrize("template", [None, "{context} {answers}", "{input}", "{context.__class__}", "{context"])
def test_templates_are_checked(tmp_path, template):
    path = tmp_path / "dataset2prompt.json"
    path.write_text(json.dumps({**{name: "{context}" for name in SETS}, "lcc": template}))
    with pytest.raises(InputError, match="lcc"):
        official_prompts(path)


def test_rows_are_found_beside_and_below_and_compressed(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "lcc_e.jsonl").write_text(json.dumps(ROW) + "\n")
    with gzip.open(tmp_path / "data/trec_e.jsonl.gz", "wt") as file:
        file.write(json.dumps(ROW))
    assert read_rows(tmp_path, "lcc") == read_rows(tmp_path, "trec") == [ROW]


def test_missing_and_bad_rows(tmp_path):
    with pytest.raises(InputError, match=r"qasper_e\.jsonl is missing.*THUDM/LongBench(.|\n)*hf download"):
        read_rows(tmp_path, "qasper")
    with pytest.raises(InputError, match="musique") as error:
        read_rows(tmp_path, "musique")
    assert error.value.field == "name"
    for change, message in (
        ({"context": 1}, "context"),
        ({"answers": []}, "answers"),
        ({"length": None}, "length"),
    ):
        (tmp_path / "qasper_e.jsonl").write_text(json.dumps({**ROW, **change}))
        with pytest.raises(InputError, match=f"qasper_e.jsonl:1.*{message}"):
            read_rows(tmp_path, "qasper")
    (tmp_path / "qasper_e.jsonl").write_text(f"{json.dumps(ROW)}\n{json.dumps(ROW)}")
    with pytest.raises(InputError, match="earlier row"):
        read_rows(tmp_path, "qasper")


def test_truncation_keeps_both_ends_in_llama2_tokens(shared):
    path = shared / "data/llama2_tokenizer/tokenizer.model"
    tokenizer = load_tokenizer(path)
    text = " ".join(f"word{i} of  it,\n" for i in range(300))
    reference = sentencepiece.SentencePieceProcessor(model_file=str(path))
    ids = [reference.bos_id(), *reference.encode(text)]
    assert truncate_middle(tokenizer, text, len(ids)) == text
    for limit in (len(ids) - 1, 501, 500):
        half = limit // 2
        want = reference.decode(ids[:half]) + reference.decode(ids[-half:])
        assert truncate_middle(tokenizer, text, limit) == want
        # A word cut in two and the blank in front of the second half may make a few tokens more or fewer.
        assert abs(1 + len(tokenizer.encode(want)) - limit) <= 3


def test_truncation_of_bytes_is_exact():
    tokenizer = load_tokenizer("bytes")
    bos = tokenizer.bos_id is not None
    assert truncate_middle(tokenizer, "abcdefghij", 6) == "abc"[: 3 - bos] + "hij"


def test_samples_score_their_own_answers(tmp_path):
    tokenizer = load_tokenizer("bytes")
    for name in SETS:
        answer = {"passage_count": "7", "passage_retrieval_en": "Paragraph 7"}.get(name, "Ada Lovelace")
        rows = [{**ROW, "answers": [answer], "all_classes": ["Ada Lovelace", "Bob"] if name == "trec" else None}]
        (sample,) = longbench_samples(name, rows, TEMPLATES[name], tokenizer, 10_000)
        assert from_json(json.loads(json.dumps(dataclasses.asdict(sample)))) == sample
        assert "It was {Ada}." in sample.prompt and sample.length == 4000
        # The package rouge adds 1e-8 to its divisor.
        assert LongBench().score(sample, answer) == pytest.approx(1, abs=1e-6)
        for file, (row,) in LongBench().own_files([sample], {sample.id: answer}).items():
            (tmp_path / file).write_text(json.dumps(row))
    assert all(bucket_scores(rows)["4-8k"] == 100 for rows in read_scored(tmp_path).values())


def test_samsum_stops_at_the_first_newline_after_a_token():
    (sample,) = longbench_samples("samsum", [ROW], TEMPLATES["samsum"], load_tokenizer("bytes"), 10_000)
    assert sample.stop == ("\n",) and sample.min_new_tokens == 1 and sample.max_new_tokens == 128
