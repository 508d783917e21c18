"""The repository keeps its own rules."""

import ast
import json
import re
import subprocess
import tomllib
from itertools import chain
from pathlib import Path

import pytest

from consumer.commands import config
from consumer.commands.root import COMMANDS
from tests.benchmarks.report import RESULTS, markdown

ROOT = Path(__file__).parents[2]
DOCUMENTS = {path: path.read_text() for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md"))}
COMPOSED = ("README.md", "docs/operations.md")
SOURCES = sorted(chain(ROOT.glob("consumer/**/*.py"), ROOT.glob("schemas/*.py")))


def tracked() -> list[Path]:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True)
    return [ROOT / name for name in listed.stdout.split("\0") if name]


def test_no_file_names_a_package_registry() -> None:
    registry = re.compile(r"pypi\.org|pythonhosted|maven\.org|registry\.npmjs|index-url")
    others = [path for path in tracked() if path.is_file() and path != Path(__file__)]

    assert [path for path in others if registry.search(path.read_text(errors="ignore"))] == []


@pytest.mark.parametrize("lock", sorted(path.name for path in ROOT.glob("requirements*.lock")))
def test_every_locked_requirement_has_a_version_and_a_hash(lock: str) -> None:
    entries = re.split(r"\n(?=\S)", (ROOT / lock).read_text().strip())
    requirements = [entry for entry in entries if not entry.startswith("#")]

    assert requirements
    for entry in requirements:
        assert re.match(r"[a-z0-9_.-]+==\S+", entry), entry[:60]
        assert "--hash=sha256:" in entry, entry[:60]


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT)))
def test_no_function_is_longer_than_40_lines(path: Path) -> None:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            assert node.end_lineno - node.lineno < 40, node.name


@pytest.mark.parametrize(
    ("technology", "home"), [("aiokafka", "kafka"), ("sqlalchemy", "postgres"), ("asyncpg", "postgres")]
)
def test_each_technology_has_one_room(technology: str, home: str) -> None:
    rooms = {
        path.relative_to(ROOT / "consumer").parts[0]
        for path in ROOT.glob("consumer/**/*.py")
        if re.search(rf"^\s*(import|from) {technology}\b", path.read_text(), re.M)
    }

    assert rooms == {home}


def test_the_docs_have_the_settings_as_they_are() -> None:
    assert config.markdown() in DOCUMENTS[ROOT / "docs/operations.md"]


def test_the_docs_have_the_benchmark_as_it_ran() -> None:
    assert markdown(json.loads(RESULTS.read_text())) in DOCUMENTS[ROOT / "docs/performance.md"]


def test_the_readme_is_short() -> None:
    assert len(DOCUMENTS[ROOT / "README.md"].splitlines()) < 200


def test_every_guarantee_names_its_test() -> None:
    table = DOCUMENTS[ROOT / "README.md"].partition("| Guarantee | Held by |\n|---|---|\n")[2].partition("\n\n")[0]
    unheld = [row for row in table.splitlines() if not re.search(r"\|[^|]*`(test_|Test)\w+`[^|]*\|$", row)]

    assert table
    assert unheld == []


def test_the_floors_of_the_documents_are_those_that_are_checked() -> None:
    text = (ROOT / "pyproject.toml").read_text()
    contracts = tomllib.loads(text)["tool"]["importlinter"]["contracts"]
    floors = next(contract["layers"] for contract in contracts if contract["name"] == "Imports point one way")
    drawn = " > ".join(floor for floor in floors if floor != "__main__")

    assert drawn in re.sub(r"\s+", " ", DOCUMENTS[ROOT / "docs/development.md"])


def test_every_test_that_the_documents_name_exists() -> None:
    tests = "\n".join(path.read_text() for path in ROOT.glob("tests/**/test_*.py"))
    named = set(re.findall(r"`((?:test_|Test)\w+)`", "\n".join(DOCUMENTS.values())))

    assert named
    assert {name for name in named if not re.search(rf"(def|class) {name}\b", tests)} == set()


@pytest.mark.parametrize("path", DOCUMENTS, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_file_that_a_document_links_exists(path: Path) -> None:
    linked = {name for name in re.findall(r"\]\(([^)#:]+)[^)]*\)", DOCUMENTS[path]) if "/" in name or "." in name}

    assert {name for name in linked if not (path.parent / name).exists()} == set()


def test_every_path_that_the_documents_name_exists() -> None:
    named = set(re.findall(r"\b((?:consumer|schemas|tests|deploy|docs)/[\w./-]*\w)", "\n".join(DOCUMENTS.values())))
    placeholders = {"000N_what.py", "NAME.py", "TYPE"}

    assert named
    assert {name for name in named if not placeholders & {*name.split("/")} and not (ROOT / name).exists()} == set()


def test_every_make_target_that_the_documents_name_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^    |`)make ([a-z-]+)", "\n".join(DOCUMENTS.values()), re.MULTILINE))

    assert named
    assert named <= targets


def test_every_compose_command_of_the_readme_is_one_that_the_deploy_check_types() -> None:
    typed = {name: re.findall(r"^    (docker compose .*)$", DOCUMENTS[ROOT / name], re.MULTILINE) for name in COMPOSED}

    assert typed["README.md"]
    assert set(typed["README.md"]) <= set(typed["docs/operations.md"])


def test_every_command_that_the_documents_name_exists() -> None:
    named = set(re.findall(r"conversation-consumer ([a-z-]+)", "\n".join(DOCUMENTS.values())))

    assert named - set(COMMANDS) == set()
