"""Published LoRA adapters: immutable folders named by content, each tied to its base model by content.

`publish` copies a trained adapter to `adapters_dir/NAME-<12 hex>` in one step: before the rename nothing is visible,
after it nothing changes. The hex digits come from the weights, the LoRA settings, the base, the training configuration
and rows, never from the clock, so the same adapter published twice is one adapter. `verify` refuses an adapter over
another base, or a damaged one, before any weight is loaded.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import errno
import hashlib
import json
import math
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter, ValidationError

from slm_ray.adapters.base_model import base_config, base_fingerprint
from slm_ray.adapters.card import licence_of, model_card
from slm_ray.adapters.manifest import CARD, MANIFEST, PARITY, PROMPTS, SETTINGS, TEMPLATE, WEIGHTS, Manifest
from slm_ray.adapters.weights import base_shapes as base_shapes_of
from slm_ray.adapters.weights import check_tensors, unserved
from slm_ray.errors import AdapterError, ConfigError, ResourceError
from slm_ray.records import TrainingEffort
from slm_ray.remote import fetch_rest
from slm_ray.storage import file_digest, read_json, write_json, write_text

_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*-[0-9a-f]{12}")
NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,79}")
_LISTED = 20  # names in an error
_ABANDONED_S = 24 * 3600


_MANIFEST = TypeAdapter(Manifest)


def publish(
    source_folder: str | Path,
    adapters_dir: str | Path,
    *,
    name: str,
    track: str,
    base: str,
    base_fingerprint: str,
    config_digest: str,
    data_digest: str,
    metrics: Mapping[str, Any],
    train_prompts: Iterable[str],
    recipe: Mapping[str, Any],
    base_shapes: Mapping[str, tuple[int, ...]] | None,
    proof: Mapping[str, Any] | None = None,
    parity: Any = None,
) -> Manifest:
    """Copy a PEFT adapter into `adapters_dir` for good and return its manifest; the same content gives the same id.

    Every tensor is checked first, against `base_shapes` too where the base is at hand: AdapterError, and nothing is copied.

    `train_prompts` are prompt hashes, kept beside the adapter so that a contaminated evaluation can be refused. The
    first publication's manifest stands: a second one does not change its metrics or time. `parity` is kept as JSON too;
    neither it nor `proof` is part of the id.
    """
    if not NAME.fullmatch(name):
        raise AdapterError(f"adapter name {name!r}: use letters, digits, '.', '_' and '-', at most 80 of them")
    source, root = Path(source_folder), Path(adapters_dir)
    settings = _settings(source / SETTINGS, base)
    check_tensors(source / WEIGHTS, settings, base_shapes, serving=False)
    _check_figures(metrics)
    prompts = sorted(set(train_prompts))
    with scratch_folder(root, ".publishing-") as scratch:
        shutil.copyfile(source / WEIGHTS, scratch / WEIGHTS)
        write_json(scratch / SETTINGS, settings)
        write_json(scratch / PROMPTS, prompts)
        if (source / TEMPLATE).is_file():
            shutil.copyfile(source / TEMPLATE, scratch / TEMPLATE)
        files = {file.name: file_digest(file) for file in sorted(scratch.iterdir())}
        manifest = Manifest(
            id=f"{name}-{_content(settings, files, base_fingerprint, config_digest, data_digest)}",
            name=name, track=track, base=base, base_fingerprint=base_fingerprint, config_digest=config_digest, files=files,
            data_digest=data_digest, metrics=dict(metrics), created=datetime.now(UTC).isoformat(timespec="seconds"),
            rank=settings["r"], alpha=settings["lora_alpha"], hidden_size=_hidden_size(base_shapes or {}), train_prompts=len(prompts),
            recipe=dict(recipe), proof=proof,
        )  # fmt: skip
        if parity is not None:
            write_json(scratch / PARITY, parity)
        write_json(scratch / MANIFEST, dataclasses.asdict(manifest))
        write_text(scratch / CARD, model_card(manifest, licence=licence_of(base)))
        _reveal(scratch, root / manifest.id, mode=0o444)
    return load_manifest(root, manifest.id)


def export(
    adapters_dir: str | Path,
    adapter_id: str,
    out: str | Path,
    *,
    card: Callable[[Manifest], str],
    base: str | None = None,
) -> Manifest:
    """Write an adapter as a folder that plain PEFT, plain vLLM and slm_ray itself load, with `card` as its README.md.

    `base` is the name of the base that its settings are to carry, in place of where it lay when it was trained; its id
    does not depend on that. `out` must not exist. AdapterError when the adapter is damaged.
    """
    manifest, home, target = _whole(adapters_dir, adapter_id), Path(adapters_dir) / adapter_id, Path(out).absolute()
    if os.path.lexists(target):
        raise ConfigError(f"{out} exists; give --out a folder that does not, so that nothing in it is mixed or lost")
    with scratch_folder(target.parent, f".{target.name}-") as scratch:
        for name in _published(manifest):
            shutil.copyfile(home / name, scratch / name)
        if base is not None:
            write_json(scratch / SETTINGS, read_json(home / SETTINGS) | {"base_model_name_or_path": base})
            files = {**manifest.files, SETTINGS: file_digest(scratch / SETTINGS)}
            manifest = dataclasses.replace(manifest, base=base, files=files)
        write_json(scratch / MANIFEST, dataclasses.asdict(manifest))
        write_text(scratch / CARD, card(manifest))
        _reveal(scratch, target, mode=0o644)
    return manifest


def is_id(name: str) -> bool:
    """Whether `name` is spelled as the id of a published adapter: a name, '-' and 12 hex digits."""
    return _ID.fullmatch(name) is not None


def adapter_ids(adapters_dir: str | Path) -> list[str]:
    """The ids of all published adapters, sorted; an absent folder holds none. Opens no file."""
    try:
        names = os.listdir(adapters_dir)
    except OSError:
        return []
    return sorted(name for name in names if is_id(name) and os.path.isfile(os.path.join(adapters_dir, name, MANIFEST)))


def load_manifest(adapters_dir: str | Path, adapter_id: str) -> Manifest:
    """The manifest of one published adapter; AdapterError with the known ids when there is none."""
    if not is_id(adapter_id):
        raise AdapterError(
            f"{adapter_id!r} is no adapter id, which is a name, '-' and 12 hex digits; of an alias, slm-ray adapters show"
            " says which adapter it stands for"
        )
    path = Path(adapters_dir) / adapter_id / MANIFEST
    try:
        manifest = _MANIFEST.validate_json(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError):
        raise unknown_adapter(adapters_dir, adapter_id) from None
    except OSError as error:
        raise AdapterError(f"cannot read {path}: {error.strerror}; see who may read {adapters_dir}") from None
    except ValidationError as error:
        wrong = error.errors()[0]
        where = ".".join(map(str, wrong["loc"]))
        raise AdapterError(
            f"{path} is damaged ({where}{': ' if where else ''}{wrong['msg']}); delete the folder {adapter_id} and publish again"
        ) from None
    if manifest.id != adapter_id:
        raise AdapterError(f"the folder {adapter_id} holds the adapter {manifest.id}; give the folder that name")
    return manifest


def unknown_adapter(adapters_dir: str | Path, name: str, aliases: Iterable[str] = ()) -> AdapterError:
    """The error for a name that no adapter has, with the names that are nearest."""
    known = [*aliases, *adapter_ids(adapters_dir)]
    near = difflib.get_close_matches(name, known, n=_LISTED) if len(known) > _LISTED else known
    more = f" and {len(known) - len(near)} more (slm-ray adapters list)" if len(near) < len(known) else ""
    return AdapterError(f"no adapter {name!r} in {adapters_dir}; known: {', '.join(near) or 'none'}{more}")


def training_effort(manifest: Manifest) -> TrainingEffort | None:
    """What the adapter's training took, by its manifest; None where that does not say.

    The time of a training that was interrupted is that of its last attempt, brought up to all of its steps.
    """
    metrics = manifest.metrics
    known = [metrics.get(name) for name in ("train_s", "steps", "steps_run", "workers", "gpus")]
    numbers = [float(value) for value in known if isinstance(value, int | float)]
    if len(numbers) < len(known) or not numbers[2]:
        return None
    seconds, steps, steps_run, workers, gpus = numbers
    return TrainingEffort(hours=seconds * steps / steps_run / 3600, workers=int(workers), gpus=gpus)


def list_adapters(adapters_dir: str | Path) -> list[Manifest]:
    """Every published adapter, oldest first; an absent folder holds none."""
    found = (load_manifest(adapters_dir, adapter_id) for adapter_id in adapter_ids(adapters_dir))
    return sorted(found, key=lambda manifest: (manifest.created, manifest.id))


def newest(adapters_dir: str | Path) -> list[str]:
    """Of each name the id that was published last; what is damaged is passed over."""
    readable = []
    for adapter_id in adapter_ids(adapters_dir):
        with contextlib.suppress(AdapterError):
            readable.append(load_manifest(adapters_dir, adapter_id))
    readable.sort(key=lambda manifest: (manifest.created, manifest.id))
    return list({manifest.name: manifest.id for manifest in readable}.values())


def train_prompts(adapters_dir: str | Path, adapter_id: str) -> frozenset[str]:
    """The prompt hashes of the rows that an adapter was trained on."""
    load_manifest(adapters_dir, adapter_id)
    return frozenset(read_json(Path(adapters_dir) / adapter_id / PROMPTS))


def verify(adapters_dir: str | Path, adapter_id: str, base_folder: str | Path) -> Manifest:
    """The manifest, once every file is seen to be whole and `base_folder` to be the base it was trained on."""
    manifest = _whole(adapters_dir, adapter_id)
    _check_base(manifest, base_folder, base_fingerprint(base_folder))
    return manifest


class Checker:
    """Checks published adapters, one after the other: files, every tensor, and the base where it is at hand.

    `base_folder` is the base of them all; without it each adapter's own, where that is a folder here. A base is read once.
    """

    def __init__(self, adapters_dir: str | Path, base_folder: str | Path | None = None) -> None:
        self._root, self._base_folder = Path(adapters_dir), base_folder
        self._bases: dict[str, tuple[str, dict[str, tuple[int, ...]]]] = {}

    def check(self, adapter_id: str, *, serving: bool = True) -> str:
        """What was looked at, in words; AdapterError for what is wrong.

        An adapter that is whole and cannot be served, such as DoRA, is wrong only where `serving`.
        """
        manifest = _whole(self._root, adapter_id)
        folder = str(self._base_folder or manifest.base)
        shapes = None
        if self._base_folder or os.path.isdir(folder):
            if folder not in self._bases:
                self._bases[folder] = base_fingerprint(folder), base_shapes_of(folder)
            fingerprint, shapes = self._bases[folder]
            _check_base(manifest, folder, fingerprint)
        home = self._root / adapter_id
        settings = _settings(home / SETTINGS, manifest.base)
        check_tensors(home / WEIGHTS, settings, shapes, serving=serving)
        notes = ["files, tensors, base" if shapes else f"files, tensors; its base {manifest.base} is not here"]
        return "; ".join(notes + [f"not served: {reason}" for reason in unserved(settings)])


def inside(path: Path, adapters_dir: str | Path) -> Path:
    """The real path of a file; FileNotFoundError when it is not there or a symbolic link leads out of `adapters_dir`."""
    # Of os.path and not of pathlib: an endpoint calls it for every request.
    real, root = os.path.realpath(path, strict=True), os.path.realpath(adapters_dir)
    if os.path.commonpath([real, root]) != root:
        raise FileNotFoundError(f"{path} lies outside {adapters_dir}")
    return Path(real)


def _whole(adapters_dir: str | Path, adapter_id: str) -> Manifest:
    """The manifest, once every file is seen to be the one that was published."""
    manifest = load_manifest(adapters_dir, adapter_id)
    home = Path(adapters_dir) / adapter_id
    fetch_rest(home)
    for name in _published(manifest):
        try:
            digest = file_digest(inside(home / name, adapters_dir))
        except OSError:  # a link that leads out of the folder, or round in a circle, too
            raise AdapterError(f"{home / name} is missing; delete {adapter_id} and publish again") from None
        if digest != manifest.files.get(name):
            raise AdapterError(
                f"{home / name} is damaged (not the bytes that were published); delete {adapter_id} and publish again"
            )
    return manifest


def _published(manifest: Manifest) -> tuple[str, ...]:
    return (WEIGHTS, SETTINGS, PROMPTS, *((TEMPLATE,) if TEMPLATE in manifest.files else ()))


def _check_base(manifest: Manifest, folder: str | Path, fingerprint: str) -> None:
    if fingerprint != manifest.base_fingerprint:
        raise AdapterError(
            f"adapter {manifest.id} was trained on base {manifest.base!r} (fingerprint {manifest.base_fingerprint[:12]}, hidden"
            f" size {manifest.hidden_size}), but {folder} is fingerprint {fingerprint[:12]}, hidden size"
            f" {base_config(Path(folder)).get('hidden_size')}; give its own base, or train on this one"
        )


@contextlib.contextmanager
def scratch_folder(folder: Path, prefix: str) -> Iterator[Path]:
    """A new folder in `folder` that is gone after the block; ResourceError where the disk takes nothing.

    What others of this `prefix` left there, killed a day ago or more, goes too.
    """
    scratch = None
    try:
        folder.mkdir(parents=True, exist_ok=True)
        _sweep(folder, prefix)
        scratch = Path(tempfile.mkdtemp(dir=folder, prefix=prefix))
        yield scratch
    except OSError as error:
        raise ResourceError(
            f"cannot write to {folder}: {error.strerror or error}; nothing was changed; free the disk or pick a folder you may"
            " write to"
        ) from None
    finally:
        if scratch is not None:
            shutil.rmtree(scratch, ignore_errors=True)


def _sweep(folder: Path, prefix: str) -> None:
    """Remove what writers that were killed long ago have left: a living one is done in minutes."""
    for left in folder.glob(f"{prefix}*"):
        with contextlib.suppress(OSError):
            if time.time() - left.stat().st_mtime > _ABANDONED_S:
                shutil.rmtree(left, ignore_errors=True)


def _reveal(scratch: Path, target: Path, *, mode: int) -> None:
    """The folder under its name, in one step and synced; where there is one already, that stays."""
    for path in scratch.iterdir():
        _sync(path)
        path.chmod(mode)
    scratch.chmod(0o755)
    _sync(scratch)
    try:
        os.rename(scratch, target)
    except OSError as error:
        # A folder that has content is never replaced: of two publishers of the same adapter the first one stands.
        if error.errno not in (errno.ENOTEMPTY, errno.EEXIST):
            raise
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    os.fsync(handle)
    os.close(handle)


def _settings(path: Path, base: str) -> dict[str, Any]:
    try:
        settings = json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_number)
        _ = settings["r"], settings["lora_alpha"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError) as error:
        raise AdapterError(f"{path} is not a PEFT LoRA configuration ({error!r}); save the adapter again") from None
    # PEFT writes sets of names, in whatever order they hash: sorted, the same settings give the same bytes.
    ordered = {key: sorted(value) if _is_names(value) else value for key, value in sorted(settings.items())}
    return {**ordered, "base_model_name_or_path": base, "inference_mode": True}


def _check_figures(metrics: Mapping[str, Any]) -> None:
    odd = [name for name, value in metrics.items() if isinstance(value, float) and not math.isfinite(value)]
    if odd:
        raise AdapterError(
            f"the training's {', '.join(odd)} is no finite number, so it diverged; lower the learning rate"
        )


def _is_names(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) for one in value)


def _no_number(text: str) -> Any:
    raise ValueError(f"{text} is no number")


def _content(settings: dict[str, Any], files: dict[str, str], *parts: str) -> str:
    # Not where the base lies: its fingerprint says what it is.
    portable = {key: value for key, value in settings.items() if key != "base_model_name_or_path"}
    text = json.dumps([portable, files[WEIGHTS], files[PROMPTS], *parts], sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:12]


def _hidden_size(base_shapes: Mapping[str, tuple[int, ...]]) -> int | None:
    embeddings = (shape for name, shape in base_shapes.items() if name.endswith(("embed_tokens.weight", "wte.weight")))
    return next((shape[-1] for shape in embeddings if len(shape) == 2), None)
