"""The rules of the house that a program can check, read off the source without importing it."""

import ast
import io
import re
import tokenize
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
import yaml

REPOSITORY = Path(__file__).resolve().parents[1]

# Rooms from the ground up. A room imports from lower floors only, and not from rooms of its own floor.
FLOORS = (
    {"errors"},
    {"files", "gguf_reader", "lock", "multihost", "progress", "sharding"},
    {"rope"},
    {"model"},
    {"data"},
    {"interop"},
    {"training"},
    {"evaluation"},
    {"plan", "report", "runs"},
    {"study"},
    {"api", "commands"},
    {"cli"},
)
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms}
# Private names of other packages that have no public equivalent, with the file that explains why and the test that
# fails when they move.
PRIVATE_NAMES: dict[tuple[str, str], str] = {
    # Documented in spite of its name: the only way for a thread to end the process.
    ("rope_jax/cli/shell.py", "os._exit"): "tests/experiments/test_shell.py",
    ("rope_jax/interop/engine_worker.py", "os._exit"): "tests/experiments/test_verify.py",
}

# The project's language: the field's words, short sentences. A match in a docstring, comment, message or page fails.
DIALECT = {
    r"\bfor want of\b": "because ... is missing",
    r"\bgo(es)? on (from|with)\b": "resumes",
    r"\bgoes on\b": "continues",
    r"(?<!left )\bbehind\b": "after",
    r"\bdear(er)?\b": "expensive",
    r"\blikewise\b": "say it",
    r"\bas many times\b": "by that factor",
    r"\bbreaks past\b": "degrades beyond",
    r"\bso that the move is least\b": "so as to shift the distribution least",
    r"\btakes the others with it\b": "all of them stop",
    r"\bmore to be had\b": "say what",
    r"\bshould the newest\b": "if the newest",
    r"\bin place of\b": "instead of",
    r"\brefused by name\b": "an error that names it",
}


@cache
def source(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def files(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (REPOSITORY / folder).rglob("*.py"))


def name(path: Path) -> str:
    return path.relative_to(REPOSITORY).as_posix()


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything that a file imports, wherever in the file."""
    for node in ast.walk(source(path)):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, f"{name(path)}:{node.lineno}: a relative import"
            yield from ((node.lineno, f"{node.module}.{alias.name}") for alias in node.names)


def room_of(path: Path) -> str:
    return path.relative_to(REPOSITORY / "rope_jax").parts[0].removesuffix(".py")


def wrong_imports() -> Iterator[str]:
    for path in files("rope_jax"):
        room = room_of(path)
        if room == "__init__":
            continue
        if room not in FLOOR_OF:
            yield f"{name(path)}: the room {room} has no floor in tests/test_house.py"
            continue
        for line, imported in imports(path):
            package, _, rest = imported.partition(".")
            other = rest.partition(".")[0]
            if package == "rope_jax" and other != room and FLOOR_OF.get(other, -1) >= FLOOR_OF[room]:
                yield f"{name(path)}:{line}: {room} imports {other}"


def user_interface_in_the_library() -> Iterator[str]:
    for path in files("rope_jax"):
        forbidden, cli = {"experiments", "configs", "tests"}, room_of(path) == "cli"
        forbidden |= set() if cli else {"absl", "ml_collections", "argparse"}
        for line, imported in imports(path):
            if imported.split(".")[0] in forbidden:
                yield f"{name(path)}:{line}: imports {imported}"
        if cli:
            continue
        for node in ast.walk(source(path)):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "print":
                yield f"{name(path)}:{node.lineno}: prints"


def config_paths_in_the_library() -> Iterator[str]:
    shows_the_renaming = REPOSITORY / "rope_jax" / "errors.py"
    for path in set(files("rope_jax")) - {shows_the_renaming, *files("rope_jax/cli")}:
        for line, text in texts(path):
            if re.search(r"\bconfig\.[a-z_]+\.[a-z_]+|--config\b", text):
                yield f"{name(path)}:{line}: spells a config field; the library names its arguments"


def long_files() -> Iterator[str]:
    limits = {path: 400 for path in files("rope_jax")} | {path: 260 for path in files("rope_jax/cli", "experiments")}
    limits[REPOSITORY / "rope_jax" / "rope" / "solve.py"] = 160
    for path, limit in limits.items():
        lines = len(path.read_text(encoding="utf-8").splitlines())
        if lines > limit:
            yield f"{name(path)}: {lines} lines, at most {limit}"


def many_parameters() -> Iterator[str]:
    for path in files("rope_jax", "experiments"):
        for node in ast.walk(source(path)):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
                parameters = [argument.arg for argument in (*node.args.posonlyargs, *node.args.args)]
                if parameters[:1] in (["self"], ["cls"]):
                    parameters = parameters[1:]
                if len(parameters) > 5:
                    called = getattr(node, "name", "lambda")
                    yield f"{name(path)}:{node.lineno}: {called} has {len(parameters)} positional parameters"


def private_names() -> Iterator[str]:
    for path in files("rope_jax", "experiments", "configs", "benchmarks"):
        modules = {}
        for node in ast.walk(source(path)):
            if isinstance(node, ast.Import):
                modules |= {alias.asname or alias.name.split(".")[0]: alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom):
                modules |= {alias.asname or alias.name: f"{node.module}.{alias.name}" for alias in node.names}
        for line, imported in imports(path):
            if _private(imported) and not imported.startswith(("rope_jax.", "__future__")):
                yield from _unless_known(path, line, imported)
        for node in ast.walk(source(path)):
            if isinstance(node, ast.Attribute):
                root, parts = node, []
                while isinstance(root, ast.Attribute):
                    parts.append(root.attr)
                    root = root.value
                if isinstance(root, ast.Name) and root.id in modules:
                    dotted = ".".join([modules[root.id], *reversed(parts)])
                    if _private(node.attr) and not dotted.startswith("rope_jax."):
                        yield from _unless_known(path, node.lineno, dotted)


def _private(dotted: str) -> bool:
    return any(re.match(r"_(?!_)", part) for part in dotted.split("."))


def _unless_known(path: Path, line: int, dotted: str) -> Iterator[str]:
    if (name(path), dotted) not in PRIVATE_NAMES:
        yield f"{name(path)}:{line}: {dotted} is private"


def texts(path: Path) -> Iterator[tuple[int, str]]:
    """Comments and string literals of a Python file, or the lines of any other."""
    content = path.read_text(encoding="utf-8")
    if path.suffix != ".py":
        yield from enumerate(content.splitlines(), 1)
        return
    kinds = {tokenize.COMMENT, tokenize.STRING, getattr(tokenize, "FSTRING_MIDDLE", tokenize.STRING)}
    for token in tokenize.generate_tokens(io.StringIO(content).readline):
        if token.type in kinds:
            # Expressions of f-strings are code.
            formatted = re.match(r"\w*f", token.string, re.IGNORECASE)
            yield token.start[0], re.sub(r"\{[^{}]*\}", "", token.string) if formatted else token.string


def dialect() -> Iterator[str]:
    pages = [
        REPOSITORY / page
        for page in ("README.md", "RESULTS.md", "CONTRIBUTING.md", "CHANGELOG.md", "benchmarks/README.md")
    ]
    pages += sorted((REPOSITORY / "docs").rglob("*.md"))
    for path in files("rope_jax", "experiments", "configs", "benchmarks", "tests") + pages:
        if path == Path(__file__).resolve():
            continue  # lists the phrases
        for line, text in texts(path):
            for phrase, better in DIALECT.items():
                if found := re.search(phrase, text, re.IGNORECASE):
                    yield f"{name(path)}:{line}: '{found[0]}': {better}"


RULES = [
    wrong_imports,
    user_interface_in_the_library,
    config_paths_in_the_library,
    long_files,
    many_parameters,
    private_names,
    dialect,
]


@pytest.mark.parametrize("rule", RULES)
def test_rule(rule):
    violations = list(rule())
    assert not violations, "\n".join(violations)


def test_only_the_library_is_installed():
    settings = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
    assert settings["tool"]["setuptools"]["packages"]["find"]["include"] == ["rope_jax*"]
    assert (REPOSITORY / "rope_jax" / "py.typed").is_file()


def test_the_workflow_runs_the_same_script_on_every_python_that_is_named():
    workflow = yaml.safe_load((REPOSITORY / ".github/workflows/ci.yml").read_text(encoding="utf-8"))
    job = workflow["jobs"]["test"]
    assert [step["run"] for step in job["steps"] if "run" in step] == ["bash .ci/run"]
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = [name.rpartition(":: ")[2] for name in project["classifiers"] if ":: Python :: 3." in name]
    assert job["strategy"]["matrix"]["python"] == named
    assert project["requires-python"] == f">={named[0]}"
