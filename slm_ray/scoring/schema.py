"""The schema scorer: whether an answer is strict JSON, and whether it is valid under the track's JSON schema.

The dialect is the one that `$schema` names, 2020-12 where it names none. `format` is an annotation and asserts nothing,
as that standard has it. A `$ref` is followed inside the schema and to the standard's own schemas only: nothing is ever
fetched. The target plays no part; a track without a schema leaves `schema_valid` undefined. Numbers are
divided as floats (19.99 is no `multipleOf` 0.01), and a `pattern` or `unevaluated…` takes the time that it
takes; an object of 600,000 fields is looked at for four seconds.
"""

from __future__ import annotations

import functools
import json
from collections.abc import Hashable, Iterable, Iterator, Mapping
from graphlib import CycleError, TopologicalSorter
from typing import Any

from slm_ray.corpus.tracks import Track
from slm_ray.errors import ConfigError
from slm_ray.scoring.items import parse
from slm_ray.scoring.scorer import as_scores
from slm_ray.scoring.strip import strip
from slm_ray.types import RowScore

METRICS = ("json_valid_raw", "schema_valid")
_DIALECTS = (
    "https://json-schema.org/draft/2020-12/schema",
    "https://json-schema.org/draft/2019-09/schema",
    "http://json-schema.org/draft-07/schema",
    "http://json-schema.org/draft-06/schema",
    "http://json-schema.org/draft-04/schema",
)


def check(track: Track) -> None:
    """ConfigError that names the place when the track's schema is none, or refers to what is not in it."""
    _validator(track)


def score(example_id: str, prediction: str | None, track: Track) -> RowScore:
    """Score one answer as the model gave it; `prediction` None is a failed call and is invalid.

    `json_valid_raw` is about the answer as given, `schema_valid` about what is left after the track's stripping. An
    answer that the validator cannot follow (nested too deeply, a number too large to divide) is invalid.
    """
    validator = _validator(track)
    stripped, notes = strip(prediction, track.strip)
    document = parse(stripped)
    valid = document is not None and _conforms(validator, document.value)
    issues = ("not_json",) if document is None else ("schema_violation",) * (not valid)
    return RowScore(
        example_id=example_id,
        scores=as_scores(
            {
                "json_valid_raw": float((parse(prediction) if notes else document) is not None),
                "schema_valid": None if track.answer_schema is None else float(valid),
            }
        ),
        issues=issues,
    )


def _validator(track: Track) -> Any:
    if track.answer_schema is None:
        return None
    try:
        text = json.dumps(track.answer_schema, default=_mapping, allow_nan=False)
    except (TypeError, ValueError, RecursionError) as error:
        raise ConfigError(
            f"track {track.name}: answer_schema is not JSON: {error}; correct it (dates need quotes)"
        ) from None
    return _compiled(track.name, text)


def _mapping(value: Any) -> dict[str, Any]:
    if not isinstance(value, Mapping):
        raise TypeError(f"{value!r} is no JSON value")
    return dict(value)


def _conforms(validator: Any, value: Any) -> bool:
    try:
        return validator is None or bool(validator.is_valid(value))
    except (RecursionError, ArithmeticError):
        return False


def _unique_items(validator: Any, wanted: Any, value: Any, _: Any) -> Iterator[Any]:
    """The keyword as the library has it, but that it holds every item against every other: hours for a megabyte."""
    from jsonschema.exceptions import ValidationError

    if wanted and validator.is_type(value, "array") and len({_key(item) for item in value}) < len(value):
        yield ValidationError("it has equal items")


def _key(value: Any) -> Hashable:
    """Equal for equal JSON values: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, dict):
        return frozenset((name, _key(part)) for name, part in value.items())
    if isinstance(value, list):
        return tuple(_key(part) for part in value)
    return (bool, value) if isinstance(value, bool) else value


@functools.lru_cache(maxsize=16)
def _compiled(track: str, text: str) -> Any:
    """A validator of the schema in `text`, tried once so that no row meets what is wrong with it."""
    from jsonschema import Draft202012Validator
    from jsonschema.validators import extend, validator_for
    from referencing import Registry

    extended: Any = extend

    schema = json.loads(text)
    where = f"track {track}: answer_schema"
    dialect = schema.get("$schema")
    if dialect is not None and not (isinstance(dialect, str) and dialect.rstrip("#") in _DIALECTS):
        raise ConfigError(f"{where}.$schema: unknown dialect {dialect!r}; known: {', '.join(_DIALECTS)}")
    kind = validator_for(schema, default=Draft202012Validator)
    _refuse_malformed(where, schema, kind)
    _refuse_bad_references(where, schema, kind)
    # An empty registry knows the standard's own schemas and has no way to fetch another.
    validator = extended(kind, {"uniqueItems": _unique_items})(schema, registry=Registry())
    try:
        validator.is_valid(None)
    except RecursionError:
        raise ConfigError(f"{where}: a $ref leads back to itself without end; refer to a part of the schema") from None
    return validator


def _refuse_malformed(where: str, schema: Any, kind: Any) -> None:
    from jsonschema.exceptions import best_match
    from jsonschema.validators import validator_for

    if isinstance(schema, Mapping):
        kind = validator_for(schema, default=kind)
    if error := best_match(kind(kind.META_SCHEMA, format_checker=kind.FORMAT_CHECKER).iter_errors(schema)):
        raise ConfigError(f"{_place(where, error.absolute_path)}: {error.message}; correct that part of the schema")


def _refuse_bad_references(where: str, schema: Mapping[str, Any], kind: Any) -> None:
    """Look up every reference that can be reached; ConfigError for one that leads nowhere, to no schema, or to itself."""
    from jsonschema_specifications import REGISTRY
    from referencing import Resource
    from referencing.exceptions import Unresolvable
    from referencing.jsonschema import specification_with

    standard = specification_with(kind.META_SCHEMA["$schema"])
    root = standard.create_resource(schema)
    stack, seen = [(root, REGISTRY.resolver_with_root(root))], {id(schema)}
    same: dict[int, list[int]] = {}  # to the schemas that judge the same value, by identity
    while stack:
        resource, resolver = stack.pop()
        found = [(part, resolver.in_subresource(part)) for part in resource.subresources()]
        same[id(resource.contents)] = [id(part) for part in _in_place(resource.contents)]
        for reference in _references(resource.contents):
            try:
                target = resolver.lookup(reference)
            except Unresolvable:
                raise ConfigError(
                    f"{where}: $ref {reference!r} leads to nothing in the schema, and nothing is fetched; "
                    "put what it names under $defs"
                ) from None
            # A reference may point anywhere, also where the dialect sees no schema and so has not checked one.
            _refuse_malformed(f"{where}: behind $ref {reference!r}", target.contents, kind)
            same[id(resource.contents)].append(id(target.contents))
            found.append((Resource.from_contents(target.contents, default_specification=standard), target.resolver))
        for part, at in found:
            if id(part.contents) not in seen:
                seen.add(id(part.contents))
                stack.append((part, at))
    _refuse_circles(where, same)


def _refuse_circles(where: str, same: Mapping[int, Iterable[int]]) -> None:
    """A schema that judges a value by judging it again never ends; going on to a part of the value does."""
    try:
        TopologicalSorter(same).prepare()
    except CycleError:
        raise ConfigError(f"{where}: a $ref leads back to itself without end; refer to a part of the schema") from None


def _in_place(contents: Any) -> list[Any]:
    """The parts of a schema that judge the same value as it does."""
    if not isinstance(contents, Mapping):
        return []
    parts = [contents[key] for key in ("not", "if", "then", "else") if key in contents]
    parts += [part for key in ("allOf", "anyOf", "oneOf") for part in contents.get(key, ())]
    return parts + [part for key in ("dependentSchemas", "dependencies") for part in contents.get(key, {}).values()]


def _references(contents: Any) -> list[str]:
    if not isinstance(contents, Mapping):
        return []
    return [text for key in ("$ref", "$dynamicRef") if isinstance(text := contents.get(key), str)]


def _place(where: str, path: Iterable[str | int]) -> str:
    return where + "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path)
