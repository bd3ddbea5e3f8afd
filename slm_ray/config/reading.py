"""YAML plus `--set a.b=c` into a frozen config, or one line that names the file, the key and the fix.

A resolved config dumps back to YAML that loads to the same config. Nothing is read from the environment here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, get_args

import yaml
from pydantic import BaseModel, ValidationError

from slm_ray.errors import ConfigError, choices
from slm_ray.yaml_file import parse_yaml, read_yaml_mapping

Config = TypeVar("Config", bound=BaseModel)


def load(kind: type[Config], path: str | Path | None, overrides: Sequence[str] = ()) -> Config:
    """Read `path` (None: every setting has its default), apply overrides (`a.b=c`, the value in YAML) and validate.

    Raises ConfigError for a missing or malformed file, an unknown key, or a value of the wrong type.
    """
    tree = read_yaml_mapping(path, what="config") if path is not None else {}
    for override in overrides:
        _apply(tree, override)
    try:
        return kind.model_validate(tree)
    except ValidationError as error:
        raise ConfigError(_explain(kind, "the settings" if path is None else str(path), error)) from None


def dump(config: BaseModel) -> str:
    """The resolved config as YAML; `load` gives the same config back."""
    return yaml.safe_dump(config.model_dump(mode="json"), sort_keys=False, allow_unicode=True)


def _apply(tree: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"--set {override!r}: write it as key=value, for example --set generation.seed=7")
    try:
        value = parse_yaml(text)
    except yaml.YAMLError:
        raise ConfigError(f"--set {override!r}: the value is not YAML; quote it") from None
    *parents, last = key.strip().split(".")
    node: Any = tree
    for depth, name in enumerate(parents):
        node = _child(node, name, ".".join(parents[: depth + 1]), override)
    if isinstance(node, list):
        node[_index(node, last, override)] = value
    else:
        node[last] = value


def _child(node: Any, name: str, path: str, override: str) -> Any:
    if isinstance(node, list):
        return node[_index(node, name, override)]
    child = node.get(name)
    if child is None:
        child = node[name] = {}
    if not isinstance(child, dict | list):
        raise ConfigError(f"--set {override!r}: {path} is the value {child!r}, it has no keys below it")
    return child


def _index(node: list[Any], name: str, override: str) -> int:
    if not name.isdigit() or int(name) >= len(node):
        raise ConfigError(
            f"--set {override!r}: {name!r} is no position in a list of {len(node)} (0 to {len(node) - 1})"
        )
    return int(name)


def _explain(kind: type[BaseModel], path: str, error: ValidationError) -> str:
    problems = []
    for problem in error.errors()[:5]:
        key = ".".join(str(part) for part in problem["loc"])
        if problem["type"] == "extra_forbidden":
            known = _fields_at(kind, problem["loc"][:-1])
            problems.append(f"unknown key {key!r}: {choices(str(problem['loc'][-1]), known)}")
        elif problem["type"] == "missing":
            problems.append(f"{key!r} is not set; add it to the file or pass --set {key}=…")
        elif problem["type"] == "value_error" and isinstance(problem["input"], dict | BaseModel):
            problems.append(f"{key!r}: {problem['ctx']['error']}" if key else str(problem["ctx"]["error"]))
        elif problem["type"] == "value_error":
            problems.append(f"{key!r} = {problem['input']!r}: {problem['ctx']['error']}")
        else:
            problems.append(f"{key!r} = {problem['input']!r}: {problem['msg'].lower()}")
    return f"{path}: " + "; ".join(problems)


def _fields_at(kind: type[BaseModel], location: Sequence[int | str]) -> Mapping[str, Any]:
    current: type[BaseModel] = kind
    for part in location:
        if isinstance(part, int):
            continue
        annotation = current.model_fields[part].annotation
        models = [a for a in (annotation, *get_args(annotation)) if isinstance(a, type) and issubclass(a, BaseModel)]
        if not models:
            break
        current = models[0]
    return current.model_fields
