"""Every command and its folder: another command that works there, and a place that cannot be written to."""

import pytest

from configs import eval as eval_config
from configs import export as export_config
from configs import llama2_8k
from configs import verify as verify_config
from rope_jax.cli.analyze import analyze, measure_usage
from rope_jax.cli.evaluate import evaluate
from rope_jax.cli.export import export
from rope_jax.cli.extend import extend
from rope_jax.cli.study import study
from rope_jax.cli.verify import verify
from rope_jax.commands.reporter import Silent
from rope_jax.errors import InputError
from rope_jax.runs.folder import RunFolder
from tests.experiments.helpers import assigned, small_config
from tests.experiments.test_study import small as small_study

pytestmark = pytest.mark.xdist_group("finished run")


@pytest.fixture(scope="module")
def model(finished):
    return str(finished[0] / "export")


def started(command, model, texts, folder):
    """Starts a command that has all it needs but its folder."""
    fields = {"model.path": model}
    match command:
        case "extend":
            extend(small_config(texts), folder, "a", reporter=Silent())
        case "evaluate":
            evaluate(assigned(eval_config.get_config(), fields | {"suite": "passkey"}), folder, "a", Silent())
        case "export":
            export(assigned(export_config.get_config(), fields | {"rope.method": "pi"}), folder, "a", Silent())
        case "analyze":
            analyze(llama2_8k.get_config(), folder, "a", reporter=Silent())
        case "usage":
            measure_usage(assigned(small_config(texts), fields), folder, Silent())
        case "verify":
            verify(assigned(verify_config.get_config(), fields), folder, "a", Silent())
        case "study":
            study(small_study(texts), folder, "a", Silent())


COMMANDS = ("extend", "evaluate", "export", "analyze", "usage", "verify", "study")


@pytest.mark.parametrize("command", COMMANDS)
def test_one_command_at_a_time_works_in_a_folder(model, texts, tmp_path, command):
    with (
        RunFolder(tmp_path / "run").locked(),
        pytest.raises(InputError, match=r"--workdir is .*/run, where another command is running \(process") as caught,
    ):
        started(command, model, texts, tmp_path / "run")
    assert caught.value.field == "--workdir"
    assert [path.name for path in (tmp_path / "run").iterdir()] == [".lock"]


@pytest.mark.parametrize("command", COMMANDS)
def test_a_place_that_cannot_be_written_to_is_said_first(model, texts, tmp_path, command):
    """A folder below a file, which nobody can create, root included."""
    (tmp_path / "file").write_text("")
    with pytest.raises(InputError, match=r"--workdir is .*/file/run, which cannot be written to") as caught:
        started(command, model, texts, tmp_path / "file" / "run")
    assert caught.value.field == "--workdir"
