"""The package and its locks: exact versions with hashes that pyproject allows, and a wheel that holds all it needs."""

from __future__ import annotations

import importlib
import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from tools.lock import pins as pins_of

ROOT = Path(__file__).parents[2]
LOCKS = {"requirements.lock": ("cpu", "dev"), "requirements.cuda.lock": ("cuda", "dev")}
PINNED = re.compile(r"([a-z0-9][a-z0-9-]*)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")


def pins(name: str) -> dict[str, str]:
    text = (ROOT / name).read_text(encoding="utf-8")
    return {match[1]: match[2] for match in PINNED.finditer(text)}


@pytest.mark.parametrize("name", [*LOCKS, "requirements.docs.lock"])
def test_every_line_of_a_lock_is_an_exact_version_with_hashes(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    comments = re.findall(r"^#.*\n", text, flags=re.MULTILINE)
    assert "".join(comments) + "".join(match[0] for match in PINNED.finditer(text)) == text
    assert len(pins(name)) >= (200 if name != "requirements.docs.lock" else 5)


@pytest.mark.parametrize("name", [*LOCKS, "requirements.docs.lock"])
def test_a_lock_names_no_place_that_files_come_from(name: str) -> None:
    text = (ROOT / name).read_text(encoding="utf-8")
    assert "://" not in text
    assert not re.search(r"^\s*(--|-[a-z]\b)(?!hash)", text, flags=re.MULTILINE)


@pytest.mark.parametrize(("name", "extras"), LOCKS.items())
def test_a_lock_satisfies_every_requirement_of_the_project(name: str, extras: tuple[str, ...]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    locked = pins(name)
    for line in [*project["dependencies"], *(line for e in extras for line in project["optional-dependencies"][e])]:
        wanted = Requirement(line)
        version = locked.get(canonicalize_name(wanted.name))
        assert version is not None, f"{name} has no {wanted.name}: run tools/lock.py"
        assert wanted.specifier.contains(version, prereleases=True), f"{name}: {wanted} is not met by {version}"


def test_the_documents_lock_adds_to_the_other_and_contradicts_nothing() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    added, there = pins("requirements.docs.lock"), pins("requirements.lock")
    assert not added.keys() & there.keys()
    for line in project["optional-dependencies"]["docs"]:
        wanted = Requirement(line)
        assert wanted.specifier.contains(added[canonicalize_name(wanted.name)])


def test_the_package_installs_beside_others() -> None:
    """An exact pin in pyproject would refuse every environment that holds another patch release."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    for line in project["dependencies"]:
        operators = {part.operator for part in Requirement(line).specifier}
        assert ">=" in operators and "==" not in operators, line


def test_the_wheel_holds_every_file_of_the_package() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]
    patterns = settings["package-data"]["slm_ray"]
    package = ROOT / "slm_ray"
    files = [path for path in package.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert files
    for path in files:
        assert any(path in package.glob(pattern) for pattern in patterns), f"no package-data pattern covers {path}"


def test_the_console_script_is_a_function() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    module, _, name = project["scripts"]["slm-ray"].partition(":")
    assert callable(getattr(importlib.import_module(module), name))


def test_packages_that_break_a_cpu_environment_are_left_out_of_its_lock() -> None:
    assert not {"torchvision", "torchaudio", "torchcodec"} & set(pins("requirements.lock"))
    assert pins("requirements.lock")["torch"].endswith("+cpu")
    assert "+" not in pins("requirements.cuda.lock")["torch"]


def test_a_package_that_pip_would_have_to_compile_is_refused() -> None:
    wheel = '[[packages]]\nname = "b"\nversion = "2"\nwheels = [{hashes = {sha256 = "y"}}, {hashes = {sha256 = "x"}}]\n'
    assert pins_of(wheel) == "b==2 \\\n    --hash=sha256:x \\\n    --hash=sha256:y\n"
    source = '[[packages]]\nname = "{}"\nversion = "1"\nsdist = {{hashes = {{sha256 = "s"}}}}\n'
    assert pins_of(source.format("rouge-score")).endswith("sha256:s\n")
    with pytest.raises(SystemExit, match="a 1 has no wheel"):
        pins_of(source.format("a"))
