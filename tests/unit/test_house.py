"""The house's rules, held by tests: imports point down, rooms stay small, nothing heavy loads early, knobs are reviewed."""

import ast
import inspect
import re
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest
from pydantic import BaseModel
from pydantic.fields import FieldInfo

import slm_ray.config as config

ROOT = Path(__file__).parents[2]
PACKAGE = ROOT / "slm_ray"
FLOORS = [
    {"types", "records", "cost_records", "load_records", "errors", "api_key", "tables", "parallel", "yaml_file", "config", "command", "ray_environment", "signals"},
    {"corpus", "scoring", "verdict", "costs", "page", "parity", "answer_distance"},
    {
        "storage", "runlog", "adapters", "providers", "tracing", "tasks", "sources", "prepare",
        "reports", "encoders", "chat_template", "traffic", "remote",
    },
    {"cluster", "executor", "training", "sweep", "learning_curve", "precisions", "serving", "evaluation", "judging", "load", "doctor", "loop", "submit", "rollout"},
    {"cli"},
]  # fmt: skip
SIDEWAYS = {
    ("errors", "errors"), ("records", "types"), ("records", "cost_records"), ("cost_records", "types"), ("load_records", "types"), ("config", "errors"), ("config", "yaml_file"), ("yaml_file", "errors"), ("command", "config"), ("command", "errors"), ("command", "signals"),
    ("ray_environment", "errors"), ("api_key", "errors"), ("parity", "answer_distance"),
    ("scoring", "corpus"), ("verdict", "corpus"), ("verdict", "scoring"), ("verdict", "costs"), ("costs", "corpus"),
    ("page", "corpus"), ("page", "scoring"), ("page", "verdict"), ("page", "costs"),
    ("runlog", "storage"), ("adapters", "storage"), ("adapters", "remote"), ("traffic", "storage"), ("remote", "storage"), ("sources", "remote"), ("traffic", "remote"), ("reports", "remote"),
    ("providers", "storage"), ("providers", "tasks"), ("tasks", "storage"),
    ("tracing", "storage"), ("tracing", "runlog"), ("tracing", "reports"), ("tracing", "adapters"),
    ("tracing", "providers"), ("tracing", "traffic"),
    ("encoders", "storage"), ("prepare", "encoders"), ("prepare", "storage"), ("prepare", "tasks"), ("prepare", "sources"), ("prepare", "remote"), ("prepare", "traffic"),
    ("reports", "storage"),
    ("reports", "tasks"), ("reports", "providers"), ("reports", "adapters"),
    ("training", "cluster"), ("training", "serving"), ("sweep", "training"), ("learning_curve", "training"), ("precisions", "training"), ("serving", "cluster"),
    ("executor", "cluster"), ("evaluation", "executor"), ("loop", "executor"),
    ("evaluation", "cluster"), ("judging", "evaluation"), ("load", "evaluation"),
    ("loop", "cluster"), ("loop", "evaluation"), ("loop", "training"), ("loop", "sweep"), ("loop", "serving"), ("loop", "rollout"),
    ("rollout", "cluster"), ("doctor", "cluster"), ("rollout", "serving"),
}  # fmt: skip
OWNERS = {
    "ray": {
        "cluster",
        "executor",
        "training",
        "learning_curve",
        "serving",
        "evaluation",
        "loop",
        "submit",
        "rollout",
        "doctor",
    },
    "grpc": {"cluster"},
    "openai": {"providers"},
    "aiohttp": {"providers", "rollout"},
    "httpx2": {"providers"},
    "torch": {"training", "serving", "encoders"},
    "transformers": {"training", "encoders", "chat_template"},
    "trl": {"training"},
    "optuna": {"training"},
    "peft": {"training"},
    "pynvml": {"training", "doctor"},
    "bitsandbytes": {"training"},
    "langfuse": {"tracing"},
    "opentelemetry": {"tracing"},
    "vllm": {"serving"},
    "pyarrow": {"sources", "storage", "traffic", "remote"},
    "datasets": {"sources", "training"},
    "jinja2": {"page", "chat_template"},
    "datasketch": {"corpus"},
    "bm25s": {"corpus"},
    "sentence_transformers": {"encoders"},
    "jsonschema": {"scoring"},
    "msgspec": {"corpus", "prepare", "reports", "runlog", "serving", "traffic", "rollout"},
    "rapidfuzz": {"scoring"},
    "regex": {"corpus", "traffic"},
    "sacrebleu": {"scoring"},
    "sklearn": {"scoring"},
    "typer": {"cli"},
}
PURE = {"corpus", "scoring", "verdict", "costs", "page", "parity", "answer_distance"}
IMPURE = {"os", "pathlib", "socket", "time", "datetime", "urllib", "http", "subprocess", "tempfile", "shutil", "httpx"}


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).parts
    return parts[0].removesuffix(".py")


def imports(path: Path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{alias.name}" for alias in node.names}
    return found


def floor_of(name: str) -> int:
    for number, rooms in enumerate(FLOORS):
        if name in rooms:
            return number
    raise AssertionError(f"slm_ray/{name} stands on no floor: add it to FLOORS and to README's picture")


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_imports_point_down(path: Path) -> None:
    here = room(path)
    if here == "__init__":
        assert not {name for name in imports(path) if name.startswith("slm_ray")}
        return
    for name in imports(path):
        parts = name.split(".")
        if parts[0] in ("jobs", "tools", "tests"):
            raise AssertionError(f"{path} imports {parts[0]}, which the installed package does not have")
        if parts[0] != "slm_ray" or len(parts) == 1 or parts[1] == here:
            continue
        if not ((PACKAGE / parts[1]).is_dir() or (PACKAGE / f"{parts[1]}.py").exists()):
            continue
        below = floor_of(parts[1]) < floor_of(here)
        assert below or (here, parts[1]) in SIDEWAYS, f"{here} may not import {parts[1]}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_outside_libraries_have_owners(path: Path) -> None:
    for name in imports(path):
        owners = OWNERS.get(name.split(".")[0])
        assert owners is None or room(path) in owners, f"{room(path)} imports {name}, which belongs to {sorted(owners)}"
        if room(path) in PURE:
            assert name.split(".")[0] not in IMPURE, f"{room(path)} is pure and imports {name}"


@pytest.mark.parametrize("path", modules(), ids=lambda p: str(p.relative_to(PACKAGE)))
def test_modules_say_what_they_are_and_stay_small(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert ast.get_docstring(tree), "no module docstring"
    assert text.count("\n") <= 400, "longer than 400 lines: split it by idea"
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or 0) - node.lineno + 1
            assert length <= 60, f"{node.name} has {length} lines"


def test_jobs_are_short_pairs() -> None:
    scripts = sorted((ROOT / "jobs").glob("*.py"))
    assert {"prepare", "evaluate", "compare", "train", "infer", "loop", "sweep"} <= {path.stem for path in scripts}
    for path in scripts:
        assert path.with_suffix(".yaml").exists(), f"{path.name} has no {path.stem}.yaml"
        assert path.read_text(encoding="utf-8").count("\n") <= 60


def test_tools_say_what_they_are_and_stay_small() -> None:
    """They are the maintainers': any library goes, but the product must not depend on them."""
    scripts = sorted((ROOT / "tools").glob("*.py"))
    assert {"lock", "make_tasks", "pretrain_tiny", "bench_evaluate"} <= {path.stem for path in scripts}
    for path in scripts:
        test_modules_say_what_they_are_and_stay_small(path)


def test_no_vague_names() -> None:
    vague = {"utils", "util", "common", "base", "manager", "helpers", "misc"}
    assert not [path for path in modules() if path.stem in vague]


def test_no_machine_paths_and_no_banners() -> None:
    folders = [*(ROOT / "jobs").glob("*"), *(ROOT / "tools").glob("*.*"), *(ROOT / "serve_configs").glob("*")]
    for path in [*modules(), *folders]:
        text = path.read_text(encoding="utf-8")
        assert not re.search(r"/(root|home/[a-z]+|work)/", text), f"{path} holds a machine path"
        assert "TODO" not in text, f"{path} holds a TODO"


LIGHT = sorted(
    name for rooms in FLOORS[:3] for name in rooms if (PACKAGE / name).is_dir() or (PACKAGE / f"{name}.py").exists()
)


def test_light_rooms_import_nothing_heavy() -> None:
    names = [f"slm_ray.{name}" for name in LIGHT] + [
        "slm_ray.corpus.read",
        "slm_ray.scoring.run",
        "slm_ray.verdict.compare",
        "slm_ray.rollout.store",
        "slm_ray.rollout.grants",
    ]
    code = (
        "import sys\n"
        + "".join(f"import {name}\n" for name in names)
        + "print([m for m in ('ray', 'torch', 'vllm', 'transformers', 'openai', 'aiohttp', 'datasets', 'langfuse', 'opentelemetry', 'scipy.stats') if m in sys.modules])"
    )
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def models_in(annotation: object) -> list[type[BaseModel]]:
    """The configs that a field's annotation names."""
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        return [annotation]
    return [model for argument in get_args(annotation) for model in models_in(argument)]


def configs() -> list[type[config.Config]]:
    """Every config with its parents and what it is made of, each once, by name."""
    kinds = [kind for name in config.__all__ if isinstance(kind := getattr(config, name), type)]
    known: dict[str, type[config.Config]] = {}
    while kinds:
        kind = kinds.pop()
        if issubclass(kind, config.Config) and kind is not config.Config and known.setdefault(kind.__name__, kind):
            inside = [model for field in kind.model_fields.values() for model in models_in(field.annotation)]
            kinds += [model for model in (*inside, *kind.__bases__) if model.__name__ not in known]
    return [known[name] for name in sorted(known)]


def own_fields(kind: type[config.Config]) -> dict[str, FieldInfo]:
    """The fields that the class itself declares or gives another default."""
    return {name: field for name, field in kind.model_fields.items() if name in inspect.get_annotations(kind)}


def knobs(kind: type[config.Config]) -> list[str]:
    """The settings that the class adds: no field of a parent, and no nested config, which has lines of its own."""
    inherited = {name for parent in kind.__bases__ for name in getattr(parent, "model_fields", {})}
    return [n for n, field in own_fields(kind).items() if n not in inherited and not models_in(field.annotation)]


def written(name: str, field: FieldInfo) -> str:
    nested = "".join(f": {model.__name__}" for model in models_in(field.annotation))
    default = field.get_default(call_default_factory=True)
    if field.is_required():
        return f"  {name}{nested} = required"
    if isinstance(default, BaseModel):
        changed = default.model_dump(exclude_unset=True)
        return f"  {name}{nested}" + (f" = {changed}" if changed else "")
    return f"  {name}{nested} = {default!r}"


def test_the_set_of_knobs_is_reviewed() -> None:
    """Adding a knob is a diff of tests/unit/knobs.txt: write the printed surface there after review."""
    lines = []
    for kind in configs():
        parents = ", ".join(parent.__name__ for parent in kind.__bases__ if parent is not config.Config)
        lines.append(kind.__name__ + (f" ({parents})" if parents else ""))
        lines += [written(name, field) for name, field in own_fields(kind).items()]
    surface = "\n".join(lines) + "\n"
    assert surface == (ROOT / "tests/unit/knobs.txt").read_text(encoding="utf-8"), surface


def test_there_are_few_knobs() -> None:
    """What people have to know: every setting of the product's jobs once, wherever it is used."""
    counted = {kind.__name__: len(knobs(kind)) for kind in configs()}
    assert counted["Generation"] == 8 and counted["ServeConfig"] == 0
    assert sum(counted.values()) <= 150, counted
