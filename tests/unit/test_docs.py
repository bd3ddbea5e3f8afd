"""Documents are true: commands run or say why not, settings, links, modules and functions that they name exist."""

import ast
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import typer

from slm_ray.cli.app import app
from slm_ray.cli.commands import NOT_MEASURED
from slm_ray.command import BAD_INPUT, INTERRUPTED
from slm_ray.config import load
from slm_ray.errors import SlmRayError
from slm_ray.verdict.decide import EXIT
from tests.unit.test_house import FLOORS
from tools import reference

ROOT = Path(__file__).parents[2]
PAGES = sorted(
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "examples").rglob("*.md")]
)
JOBS = {job.name: job for job in reference.jobs()}
_BLOCK = re.compile(r"(?:^<!-- (?P<marker>.*?) -->\n)?^```bash\n(?P<text>.*?)^```$", re.MULTILINE | re.DOTALL)
_CODE = re.compile(r"`([^`\n]+)`")
_LINK = re.compile(r"\]\(([^)\s]+)\)")


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """A block of commands in a page; `marker` is the comment above it that says who runs it, or why nobody does."""

    page: Path
    line: int
    text: str
    marker: str | None

    def __str__(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def blocks() -> list[Block]:
    found = []
    for page in PAGES:
        text = page.read_text(encoding="utf-8")
        for match in _BLOCK.finditer(text):
            line = text.count("\n", 0, match.start("text"))
            found.append(Block(page=page, line=line, text=match["text"], marker=match["marker"]))
    return found


BLOCKS = blocks()


@pytest.mark.parametrize("block", [block for block in BLOCKS if block.marker], ids=str)
def test_a_block_that_is_not_run_here_says_who_runs_it_or_why_nobody_does(block: Block) -> None:
    kind, _, rest = (block.marker or "").partition(": ")
    if kind == "not run":
        assert len(rest.split()) >= 2, f"{block}: give the reason"
        for test in re.findall(r"tests/\S+\.py", rest):
            assert (ROOT / test).is_file(), f"{block}: no {test}"
    else:
        who = re.fullmatch(r"run by (tests/\S+\.py)", block.marker or "")
        assert who, f"{block}: <!-- {block.marker} --> is neither `not run: REASON` nor `run by TEST`"
        test = (ROOT / who.group(1)).read_text(encoding="utf-8")
        for example in re.findall(r"examples/([\w-]+)/", block.text):
            assert f'"{example}"' in test, f"{block}: {who.group(1)} does not run examples/{example}"


@pytest.mark.parametrize("block", [block for block in BLOCKS if not block.marker], ids=str)
def test_a_block_without_a_marker_runs(block: Block, tmp_path: Path) -> None:
    for name in ("jobs", "data", "tools"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copytree(ROOT / "examples", tmp_path / "examples")
    for name, first in (("my_train.csv", 0), ("my_test.csv", 100)):
        rows = [f"note {n} about matter {n % 7},{'work' if n % 2 else 'home'}" for n in range(first, first + 20)]
        (tmp_path / name).write_text("\n".join(["text,label", *rows]) + "\n", encoding="utf-8")
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", block.text], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{block}\n{done.stdout}\n{done.stderr}"


def commands() -> Iterator[tuple[Block, str, list[str]]]:
    """Every call of a job in a block: the block, the job's name, its arguments."""
    for block in BLOCKS:
        for line in block.text.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            for place, word in enumerate(words):
                job = re.fullmatch(r"jobs/(\w+)\.py", word)
                if job:
                    yield block, job.group(1), words[place + 1 :]
                elif word == "slm-ray" and words[place + 1 : place + 2]:
                    yield block, words[place + 1].replace("-", "_"), words[place + 2 :]


@pytest.mark.parametrize(
    ("block", "job", "arguments"), list(commands()), ids=lambda value: str(value) if not isinstance(value, list) else ""
)
def test_a_job_in_a_block_is_given_settings_that_exist(block: Block, job: str, arguments: list[str]) -> None:
    if job not in JOBS:
        pytest.skip(f"{job} takes no config")
    settings, overrides = ROOT / "jobs" / f"{job}.yaml", []
    rest = iter(arguments)
    for argument in rest:
        if argument == "--set":
            overrides.append(next(rest))
        elif argument.startswith("--"):
            overrides.append(f"{argument[2:]}={next(rest)}")
        elif argument.endswith(".yaml"):
            settings = ROOT / argument
        else:
            overrides.append(f"run_dir={argument}")
    try:
        load(JOBS[job].model, settings, overrides)
    except SlmRayError as error:
        pytest.fail(f"{block}: {error}")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    generated = {ROOT / "docs" / path for path in reference.PAGES}
    for link in _LINK.findall(page.read_text(encoding="utf-8")):
        path = link.partition("#")[0]
        if path and "://" not in path:
            target = (page.parent / path).resolve()
            assert target.exists() or target in generated, f"{page.name}: {link}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_the_tests_that_a_page_names_exist(page: Path) -> None:
    for path, name in re.findall(r"(tests/[\w/]+\.py)(?:::(\w+))?", page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"{page.name}: no {path}"
        assert f"def {name}" in (ROOT / path).read_text(encoding="utf-8"), f"{page.name}: no {name} in {path}"


def test_every_page_has_a_place_in_the_menu() -> None:
    menu = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    pages = {str(path.relative_to(ROOT / "docs")) for path in (ROOT / "docs").rglob("*.md")} | set(reference.PAGES)
    assert set(re.findall(r"[\w/-]+\.md", menu)) == pages


def defined(tree: ast.AST) -> dict[str, ast.AST]:
    """The names that a module or a class defines or imports."""
    names: dict[str, ast.AST] = {}
    for node in getattr(tree, "body", []):
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            names[node.name] = node
        elif isinstance(node, ast.Assign | ast.AnnAssign):
            targets = node.targets if isinstance(node, ast.Assign) else [node.target]
            names |= {target.id: node for target in targets if isinstance(target, ast.Name)}
        elif isinstance(node, ast.ImportFrom):
            names |= {alias.asname or alias.name: node for alias in node.names}
    return names


def missing(name: str) -> str | None:
    """What is not there of `room.module.Class.method`; None when all of it is."""
    place, parts = ROOT / "slm_ray", name.split(".")
    while parts and (place / parts[0]).is_dir():
        place /= parts.pop(0)
    if not parts:
        return None
    file = place / "__init__.py"
    if (place / f"{parts[0]}.py").is_file():
        file = place / f"{parts.pop(0)}.py"
    tree: ast.AST = ast.parse(file.read_text(encoding="utf-8"))
    for part in parts:
        names = defined(tree)
        if part not in names:
            return f"{part} of {name}, looked for in {file.relative_to(ROOT)}"
        tree = names[part]
    return None


def rooms() -> set[str]:
    return {
        path.stem for path in (ROOT / "slm_ray").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()
    }


@pytest.mark.parametrize("page", ["docs/explanation/architecture.md", "docs/explanation/asking.md", "CONTRIBUTING.md"])
def test_the_modules_functions_and_files_that_a_page_names_exist(page: str) -> None:
    text = re.sub(r"```.*?```", "", (ROOT / page).read_text(encoding="utf-8"), flags=re.DOTALL)
    names = _CODE.findall(text)
    dotted = [name for name in names if re.fullmatch(r"[a-z_]+(\.\w+)+", name) and name.partition(".")[0] in rooms()]
    files = [name for name in names if re.fullmatch(r"[\w./-]+\.(py|yaml|yml|toml|txt|sh|j2|md)", name) and "/" in name]
    folders = [name for name in names if re.fullmatch(r"[\w./-]+/", name)]
    assert dotted or files
    assert [problem for name in dotted if (problem := missing(name))] == []
    for name in (*files, *folders):
        assert (ROOT / name).exists() or (ROOT / "slm_ray" / name).exists(), f"{page}: no {name}"


def test_a_name_that_is_not_there_is_noticed() -> None:
    assert missing("config.reading.load") is None
    assert missing("types.Prompt.as_dicts") is None
    assert missing("config.reading.lod")
    assert missing("types.Prompt.as_tuples")


def test_readme_is_short_and_starts_with_what_to_do() -> None:
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert len(lines) <= 150
    assert any("examples/tickets/prepare.yaml" in line for line in lines[:40])


def test_readme_names_every_folder_of_the_repository() -> None:
    tracked = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=False).stdout.split()
    if not tracked:
        pytest.skip("no git repository here")
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What lies where")[2].partition("\n## ")[0]
    folders = {path.split("/")[0] for path in tracked if "/" in path and not path.startswith(".")}
    packages = {path.split("/")[1] for path in tracked if path.startswith("slm_ray/") and path.count("/") > 1}
    assert sorted(name for name in folders | packages if f"{name}/" not in tree) == []
    named = set(re.findall(r"([\w.]+)/", tree))
    assert sorted(named - folders - packages - {"how-to"}) == []


def test_readme_names_every_module_beside_the_rooms() -> None:
    tree = (ROOT / "README.md").read_text(encoding="utf-8").partition("## What lies where")[2].partition("\n## ")[0]
    modules = {path.stem for path in (ROOT / "slm_ray").glob("*.py")} - {"__init__"}
    assert sorted(modules - set(_CODE.findall(tree))) == []


def test_readme_names_every_command() -> None:
    listed = (ROOT / "README.md").read_text(encoding="utf-8").partition("## The jobs")[2].partition("\n## ")[0]
    named = {name.removeprefix("slm-ray ").replace("_", "-") for name in _CODE.findall(listed)}
    assert sorted(typer.main.get_command(app).commands.keys() - named) == []  # type: ignore[attr-defined]


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_page_that_people_begin_with_links_every_other_one(page: str) -> None:
    links = _LINK.findall((ROOT / page).read_text(encoding="utf-8"))
    linked = {(ROOT / page).parent.joinpath(link.partition("#")[0]).resolve() for link in links if "://" not in link}
    pages = set((ROOT / "docs").rglob("*.md")) - {ROOT / "docs" / "index.md"}
    assert sorted(path.name for path in pages - linked) == []


def test_architecture_has_every_room_on_its_layer() -> None:
    text = (ROOT / "docs/explanation/architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| ([^|]*) \|", text, re.MULTILINE)
    listed = {int(number): re.findall(r"`(\w+)/?`", names) for number, names in rows}
    assert {number: sorted(names) for number, names in listed.items()} == {
        number: sorted(names | {"jobs"} if number == len(FLOORS) - 1 else names) for number, names in enumerate(FLOORS)
    }


def test_every_job_and_every_setting_is_in_the_reference() -> None:
    pairs = {path.stem for path in (ROOT / "jobs").glob("*.yaml") if path.with_suffix(".py").is_file()}
    listed = {job.name for job in reference.jobs()}
    assert pairs == listed
    jobs, settings = reference.jobs_page(), reference.settings_page()
    for job in reference.jobs():
        assert f"\n## {job.name}\n" in jobs
        section = settings.partition(f"\n## {job.name}\n")[2].partition("\n## ")[0]
        assert set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)) == job.model.model_fields.keys()
    linked = set(re.findall(r"\(#(\w+)\)", settings))
    assert {title.lower() for title in re.findall(r"^## (\w+)$", settings, re.MULTILINE)} >= linked


def test_the_site_loads_nothing_from_elsewhere() -> None:
    hooks = pytest.importorskip("tools.mkdocs_hooks", reason="`make docs` installs mkdocs", exc_type=ImportError)
    assert hooks._LOADED.search('<script src="https://unpkg.com/x.js"></script>')
    assert hooks._LOADED.search('<link rel="stylesheet" href="https://fonts.googleapis.com/css">')
    assert not hooks._LOADED.search('<a href="https://example.org">there</a> <script src="../assets/x.js"></script>')


def test_the_exit_statuses_are_those_of_the_code() -> None:
    page = (ROOT / "docs/reference/exit-statuses.md").read_text(encoding="utf-8")
    listed = dict(re.findall(r"^\| (\d+) \| .*? \| (.*) \|$", page, re.MULTILINE))
    for action, status in EXIT.items():
        assert f"**{action}**" in listed[str(status)]
    assert {str(BAD_INPUT), str(INTERRUPTED), str(NOT_MEASURED)} <= listed.keys()


def test_no_line_of_the_change_log_stands_twice() -> None:
    lines = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8").splitlines()
    begun = Counter(line[:40] for line in lines if line.startswith("- "))
    assert not [start for start, times in begun.items() if times > 1], "a merge left both of them"
