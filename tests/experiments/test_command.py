"""The command `rope-jax`: the same config as the other door's, help without JAX, and mistakes in one line."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from absl import flags
from ml_collections import config_flags

from rope_jax.cli import main
from rope_jax.cli import typed as spelling
from rope_jax.cli.config import change, start
from rope_jax.cli.subcommands import COMMANDS
from rope_jax.commands.fields import FIELDS
from rope_jax.rope.methods.registered import REGISTERED
from tests.processes import REPOSITORY

# Of ml_collections, as it loads a config file.
pytestmark = pytest.mark.filterwarnings("ignore:the load_module:DeprecationWarning")


def other_door(monkeypatch, *arguments):
    """The config of `python -m experiments.X`, as absl reads it."""
    monkeypatch.setattr(sys, "argv", ["command", *arguments])  # where ml_collections finds fields
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values)
    values(sys.argv)
    return values.config


def typed(name, line):
    return main.request(name, main.parse(name, line.split()))


SAME = [
    (
        "extend",
        "M T --target 16k --method dprope,yarn --lora 16 --set eval.lengths=1k,2048 --set debug.nans=true",
        "local --config.model.path=M --config.data.path=T --config.context.target=16384 --config.compare=('yarn',) "
        "--config.train.lora.rank=16 --config.eval.lengths=(1024,2048) --config.debug.nans=True",
    ),
    (
        "export",
        "M --method pi --verify",
        "export --config.model.path=M --config.rope.method=pi --config.verify=True",
    ),
    (
        "evaluate",
        "M --suite passkey,perplexity --data T --method own,pi",
        "eval --config.model.path=M --config.suite=passkey,perplexity --config.data.path=T --config.compare=('pi',)",
    ),
    ("analyze", "--base 1e4 --head-dim 64", "analyze --config.rope.base=1e4 --config.rope.head_dim=64"),
    ("verify", "F --engine vllm", "verify --config.model.path=F --config.engine.name=vllm"),
    ("study", "T --seeds 2", "study --config.data.path=T --config.study.seeds=2"),
    ("extend", "--config configs/llama2_16k.py --set mesh.data=2", "llama2_16k --config.mesh.data=2"),
]


@pytest.mark.parametrize(("name", "line", "other"), SAME)
def test_both_doors_make_one_config(name, line, other, monkeypatch):
    monkeypatch.chdir(REPOSITORY)
    file, *fields = other.split()
    assert typed(name, line) == other_door(monkeypatch, f"--config=configs/{file}.py", *fields)


def test_quick_is_one_method_and_few_tokens():
    quick = typed("extend", "M T --quick")
    assert quick.compare == () and quick.train.steps < typed("extend", "M T").train.steps
    assert typed("extend", "M T --quick --steps 30").train.steps == 30


def test_help_imports_nothing_large():
    code = (
        "import sys; sys.argv = ['rope-jax', '--help']; from rope_jax.cli.main import main, parser, COMMANDS; main()\n"
        "[parser(name).format_help() for name in COMMANDS]\n"
        "assert not {'jax', 'numpy', 'absl'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY, stdout=subprocess.DEVNULL)


@pytest.mark.parametrize("name", COMMANDS)
def test_help_shows_the_fields_that_matter_as_the_list_has_them(name):
    text = " ".join(main.parser(name).format_help().split())
    command, listed = COMMANDS[name], {field.name: field for field in FIELDS}
    assert len(command.options) == 5 and all(example.strip() in text for example in command.examples)
    for option, field in {**command.options, **command.given}.items():
        assert option in text and f"{field}: {listed[field].meaning[:9]}" in text
    assert command.does in text and "rope-jax fields" in text


def test_fields_are_listed(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["rope-jax", "fields", "n_hat"])
    main.main()
    assert "solve.n_hat = 0: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("extnd M T", "there is no command 'extnd': did you mean 'extend'?"),
        ("extend", "MODEL and TEXTS missing; for example: rope-jax extend MODEL TEXTS --quick"),
        ("extend M T --traget 16k", "--traget is unknown: did you mean '--target'?"),
        ("extend M T --set train.stepz=3", "there is no field train.stepz: did you mean 'train.steps'?"),
        ("extend M T --set train.steps", "--set train.steps: write FIELD=VALUE"),
        ("extend M T --target long", "--target is 'long': it must be int"),
        ("extend M T --method yarm", "--method is 'yarm': did you mean 'yarn'?"),
        ("extend M T --method yarn,pie", "--method is ('pie',): did you mean 'pi'?"),
        ("extend M T --methods mine.txt", "mine.txt': name a Python file"),
        ("extend M T --methods broken.py", "broken.py: ZeroDivisionError: division by zero"),
        ("extend M T --methods taken.py", "name is 'yarn', which is a method already"),
        ("export --set rope.method=yarn", "MODEL and --run are empty"),
        ("extend --config nowhere.py", "--config nowhere.py: FileNotFoundError"),
    ],
)
def test_a_mistake_is_one_line(line, said, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("broken.py").write_text("1 / 0")
    Path("taken.py").write_text("import rope_jax\nrope_jax.method('yarn')")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["rope-jax", *line.split()])
    with pytest.raises(SystemExit) as caught:
        main.main()
    error = capsys.readouterr().err
    assert caught.value.code == 2 and error.count("\n") == 1 and "config." not in error
    assert error.startswith("error: ") and said in error


def test_analysis_by_command(monkeypatch, capsys, tmp_path, more=""):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    line = f"analyze --base 10000 --head-dim 16 --original 64 --target 128 --set angles.intervals=16 -o {tmp_path}"
    line += more
    monkeypatch.setattr(sys, "argv", ["rope-jax", *line.split()])
    main.main()
    assert "disturbance" in capsys.readouterr().out and (tmp_path / "analysis.json").is_file()


def test_a_method_of_a_file_is_analyzed_and_named(monkeypatch, capsys, tmp_path):
    file = tmp_path / "my_vectors.py"
    file.write_text(
        "import rope_jax\nrope_jax.method('mine')(lambda geometry, measure: [2.0] * (geometry.head_dim // 2))"
    )
    try:
        test_analysis_by_command(monkeypatch, capsys, tmp_path, f" --methods {file}")
        found = json.loads((tmp_path / "analysis.json").read_text())["disturbance_e3"]
        assert found["mine"] == found["pi"]
        test_a_mistake_is_one_line(f"extend M T --methods {file} --method min", "'mine'", monkeypatch, capsys, tmp_path)
    finally:
        REGISTERED.clear()


@pytest.mark.parametrize("field", ["seed=1", "sed=1"])
def test_debug_shows_the_traceback(field, monkeypatch, capsys):
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr(sys, "argv", ["rope-jax", "export", "--debug", "--set", field])
    with pytest.raises(SystemExit):
        main.main()
    said = capsys.readouterr().err
    assert "Traceback" in said and said.splitlines()[-1].startswith("error: ")


@pytest.mark.parametrize(
    ("program", "begins"), [("/bin/rope-jax", "rope-jax"), ("x/experiments/extend.py", "python -m experiments.")]
)
def test_the_next_commands_are_those_of_the_same_door(program, begins, monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", [program])
    lines = spelling.next_commands(tmp_path)
    assert all(line.startswith(begins) for line in lines)
    if begins == "rope-jax":
        export = typed("export", lines[2].removeprefix("rope-jax export "))
        assert export.export.formats == ("hf", "gguf") and export.export.run == str(tmp_path)
        assert typed("evaluate", lines[0].removeprefix("rope-jax evaluate ")).model.path == str(tmp_path)


def test_a_program_records_the_command_that_does_the_same(monkeypatch, tmp_path):
    monkeypatch.setattr(sys, "argv", ["lib/ipykernel_launcher.py", "-f", "kernel.json"])
    config = start("extend")
    fields = {"model.path": "a b", "compare": (), "eval.lengths": (1024, 2048), "debug.nans": True, "seed": 3}
    change(config, fields | {"train.learning_rate": 5e-4, "train.positions": "skip"})
    program, name, *arguments = shlex.split(spelling.command("extend", config, tmp_path))
    assert (program, name) == ("rope-jax", "extend")
    read = main.parse(name, arguments)
    assert main.request(name, read).to_dict() == config.to_dict() and read.output == str(tmp_path)


def test_options_of_the_other_door():
    assert main.parse("extend", ["M", "T", "--plan", "--mesh", "fsdp=8", "--profile", "2:3"]).mesh == "fsdp=8"
    assert main.parse("evaluate", ["--score", "FOLDER", "--workdir=OUT"]).output == "OUT"
    assert main.parse("study", ["--table", "table.jsonl"]).table == "table.jsonl"
    assert main.parse("extend", ["M", "T", "--dry_run"]).dry_run
