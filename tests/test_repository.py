"""The repository as a whole: what its documents promise, and what no file may hold."""

import ast
import itertools
import re
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
SOURCE = ROOT / "src" / "tinyseed"

ABSOLUTE = re.compile(rb"(?<![\w./:$~{-])/(?:home|root|work|Users|mnt|scratch)/[\w.-]+")
"""A path of the machine that made a file."""


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    return [path for name in listed.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def test_no_tracked_file_holds_a_path_of_the_machine_that_made_it():
    found = {
        str(path.relative_to(ROOT)): match[0]
        for path in tracked()
        if path != Path(__file__) and (match := ABSOLUTE.search(path.read_bytes()))
    }
    assert found == {}


def test_the_pattern_finds_such_paths():
    assert ABSOLUTE.search(b'"model": "/home/ada/runs/student"')
    assert not ABSOLUTE.search(b"https://example.org/home/page and ../jobs/x and file.py:/homepage")


def steps_of(section: str) -> list[list[tuple[str, str]]]:
    """The chains of `file.py: name` that docs/architecture.md lists under a heading."""
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    body = text.split(f"## {section}\n", 1)[1].split("\n## ", 1)[0]
    lines = [line for line in body.splitlines() if "→" in line]
    return [re.findall(r"([\w/]+\.py): ([\w.]+)", line) for line in lines]


def names_in(path: Path) -> set[str]:
    """Functions, classes and methods of a module."""
    found = set()
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            found |= {f"{node.name}.{part.name}" for part in node.body if isinstance(part, ast.FunctionDef)}
    return found


def test_the_ways_through_the_code_are_as_short_as_they_are_said_to_be():
    """From a command to its arithmetic in three hops: each place exists, and its file calls the next one."""
    chains = steps_of("Ways through the code")
    assert [chain[-1][0] for chain in chains[:2]] == ["objectives/seed.py", "evaluation/logistic.py"]
    for chain in chains:
        assert len(chain) <= 4, chain  # three hops connect four places
        for file, name in chain:
            assert name in names_in(SOURCE / file), (file, name)
        for (file, _), (_, name) in itertools.pairwise(chain):
            call = rf"\b{name.split('.')[-1]}\("
            assert re.search(call, (SOURCE / file).read_text(encoding="utf-8")), (
                f"{file} does not call {name}"
            )


def test_module_docstrings_say_what_belongs_in_the_file():
    for path in SOURCE.rglob("*.py"):
        text = ast.get_docstring(ast.parse(path.read_text(encoding="utf-8")))
        assert text, path
        assert not re.search(r"\bImports\b", text), path


def test_only_settings_and_the_boundary_know_flags():
    """Functions below the boundary take no name of a flag, and write none."""
    rooms = (
        "checkpoints",
        "data",
        "detection",
        "engine",
        "evaluation",
        "methods",
        "models",
        "networks",
        "objectives",
    )
    for room in rooms:
        for path in (SOURCE / room).rglob("*.py"):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.FunctionDef):
                    names = [argument.arg for argument in [*node.args.args, *node.args.kwonlyargs]]
                    assert not {"flag", "option"} & set(names), f"{path}: {node.name}"
                if isinstance(node, ast.Raise):
                    assert "'--" not in ast.dump(node), f"{path}:{node.lineno}"
