"""The one reader of YAML files: configs, tracks, prices, serving files, whatever a person has written by hand.

Promises an error in one line that names file and line for whatever is wrong with the file itself. A key that stands twice
in one mapping is refused, since YAML would silently take the last. What the tree has to hold is the caller's to check.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from slm_ray.errors import ConfigError


class _Loader(yaml.SafeLoader):
    """PyYAML's safe loader, without keys that stand twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen: dict[str, yaml.Mark] = {}
        for key, _ in node.value:
            if not isinstance(key, yaml.ScalarNode) or key.tag == "tag:yaml.org,2002:merge":
                continue
            if key.value in seen:
                first = seen[key.value].line + 1
                raise yaml.MarkedYAMLError(
                    problem=f"the key {key.value!r} stands in line {first} too", problem_mark=key.start_mark
                )
            seen[key.value] = key.start_mark
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """The tree that the text says; yaml.YAMLError where it says none."""
    try:
        return yaml.load(text, _Loader)
    except (ValueError, RecursionError) as error:  # a date such as 2026-99-99; brackets a thousand deep
        raise yaml.YAMLError(str(error)) from None


def read_yaml(path: str | Path, *, what: str) -> Any:
    """The tree in the file; `what` names its kind in errors. ConfigError when it cannot be read or is not YAML."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise ConfigError(f"{path}:{line}: not UTF-8 text; save the file as UTF-8") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL byte in the path
        reason = getattr(error, "strerror", error)
        raise ConfigError(f"cannot read the {what} {path}: {reason}; give the path of a YAML file") from None
    if not text.strip():
        raise ConfigError(f"{path} is empty; write it again, or give another file")
    try:
        return parse_yaml(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}{_line(error)}: not YAML ({_reason(error)}); fix the syntax") from None


def read_yaml_mapping(path: str | Path, *, what: str) -> dict[str, Any]:
    """As `read_yaml`, where the file has to be a mapping."""
    tree = read_yaml(path, what=what)
    if not isinstance(tree, dict):
        raise ConfigError(f"{path}: a {what} is a mapping of keys to values, not {type(tree).__name__}")
    return tree


def _line(error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f":{mark.line + 1}" if mark is not None else ""


def _reason(error: yaml.YAMLError) -> str:
    """What is wrong, in few words: PyYAML's own text goes over several lines."""
    problem = getattr(error, "problem", None)
    return str(problem or str(error).splitlines()[0])
