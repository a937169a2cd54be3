"""What the pages show is what happens."""

import importlib.util
import re
from pathlib import Path

import pytest

from rope_jax.commands.fields import FIELDS, LEARNED
from rope_jax.rope.embedding import identity
from rope_jax.rope.geometry import Geometry
from rope_jax.rope.measure import Measure
from rope_jax.rope.methods import METHODS

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = [
    REPOSITORY / "README.md",
    REPOSITORY / "CONTRIBUTING.md",
    REPOSITORY / "RESULTS.md",
    *sorted((REPOSITORY / "docs").glob("*.md")),
]
TEXTS = {page.relative_to(REPOSITORY).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
every_page = pytest.mark.parametrize("page", TEXTS)

# Code blocks that tests of their own execute.
TESTED_ELSEWHERE = {"docs/add_a_method.md": "tests/rope", "docs/library.md": "tests/test_api.py"}


@pytest.mark.parametrize(
    "page", [page for page in TEXTS if "```python" in TEXTS[page] and page not in TESTED_ELSEWHERE]
)
def test_code_runs_and_prints_what_its_comments_say(page, capsys):
    for code in re.findall(r"```python\n(.*?)```", TEXTS[page], re.S):
        names: dict = {}
        exec(compile(code, page, "exec"), names)
        if "get_config" in names:
            names["get_config"]()
        shown = [float(number) for number in re.findall(r"^print\(.*# ([\d.]+);", code, re.M)]
        printed = [float(line) for line in capsys.readouterr().out.split()]
        assert printed == pytest.approx(shown, abs=0.005)


@every_page
def test_links_lead_to_files(page):
    folder = (REPOSITORY / page).parent
    for target in re.findall(r"\]\((?!http)([^)#]+)", TEXTS[page]):
        assert (folder / target).exists(), target
    if page in TESTED_ELSEWHERE:
        return  # names a file that a reader makes
    for target in re.findall(r"`((?:configs|rope_jax|experiments|tests|docs)/[\w/.]+)`", TEXTS[page]):
        assert (REPOSITORY / target).exists(), target


@every_page
def test_commands_and_fields_exist(page):
    names = {field.name for field in FIELDS}
    sections = {name.rpartition(".")[0] for name in names} | {name.partition(".")[0] for name in names}
    for module in re.findall(r"python (?:-u )?-m (experiments\.\w+)", TEXTS[page]):
        assert importlib.util.find_spec(module), module
    for config in re.findall(r"--config=(\S+\.py)", TEXTS[page]):
        assert (REPOSITORY / config).is_file() or config == "configs/mine.py", config
    for field in re.findall(r"\bconfig\.([a-z_]+(?:\.[a-z_0-9]+)*)", TEXTS[page]):
        assert field in names | sections or field in ("json", "py"), field


def test_readme_is_short():
    assert len(TEXTS["README.md"].split()) <= 900


def test_page_of_methods_is_complete():
    assert set(re.findall(r"^\| `(\w+)` \|", TEXTS["docs/methods.md"], re.M)) == {*METHODS, LEARNED}


def test_page_of_fields_is_current():
    spec = importlib.util.spec_from_file_location("fields_page", REPOSITORY / "docs" / "fields.py")
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert TEXTS["docs/fields.md"] == module.page(), "python docs/fields.py > docs/fields.md"


@pytest.mark.parametrize("column, target, n_hat", [(3, 8192, 80), (5, 16384, 64)])
def test_table_of_methods(column, target, n_hat):
    geometry, measure = Geometry(base=10000.0, head_dim=128, own=identity(128)), Measure(original=4096, target=target)
    rows = [row.split("|") for row in TEXTS["README.md"].splitlines() if re.match(r"\| `\w+` \| .* \| [\d.]+ \|", row)]
    assert len(rows) == 10
    for row in rows:
        name, shown, published = row[1].strip(" `"), float(row[column]), row[column + 1].strip()
        if name != "minimal":  # tests/rope/test_minimise.py has this one
            solution = METHODS[name](**{"n_hat": n_hat} if name == "dprope" else {})(geometry, measure)
            assert 1e3 * solution.disturbance.mean() == pytest.approx(shown, abs=0.006)
        assert not published or float(published) == pytest.approx(shown, abs=0.04)
