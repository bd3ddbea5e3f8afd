"""An adapter merged into its base: a whole model folder that is served, trained and measured as a base of its own.

This is how DoRA is served, which vLLM knows no adapters of. The sum is taken in fp32 and rounded once, to the bf16 that
the base has, so the merged model's answers are those of base and adapter up to that rounding. An adapter that was trained
on a quantised base is merged into the base's own 16-bit weights, as it is served. Holds four bytes per number in memory.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM

from slm_ray import adapters
from slm_ray.adapters import Manifest
from slm_ray.adapters.registry import scratch_folder
from slm_ray.errors import AdapterError
from slm_ray.storage import write_json
from slm_ray.training.base_model import base_folder, silence_libraries

RECORD = "merged.json"


def merge(adapters_dir: str | Path, adapter_id: str, base: str, out: str | Path) -> Manifest:
    """Write the merged model to the new folder `out` and return the adapter's manifest.

    The folder appears whole or not at all. AdapterError when `out` is already there, or the adapter is damaged or of
    another base than `base`.
    """
    target = Path(out).absolute()
    if target.exists():
        raise AdapterError(f"{target} is already there, and a merged model never replaces anything; give a new folder")
    folder = base_folder(base)
    manifest = adapters.verify(adapters_dir, adapter_id, folder)
    silence_libraries()
    with scratch_folder(target.parent, ".merging-") as scratch:
        _write(folder, Path(adapters_dir) / adapter_id, scratch)
        origin = {"adapter": manifest.id, "base": manifest.base, "base_fingerprint": manifest.base_fingerprint}
        write_json(scratch / RECORD, origin)
        scratch.chmod(0o755)  # mkdtemp's is for its owner alone
        adapters.check_base(str(scratch), setting="base")
        os.rename(scratch, target)
    return manifest


def _write(base: Path, adapter: Path, folder: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32, local_files_only=True)
    merged = PeftModel.from_pretrained(model, str(adapter)).merge_and_unload(safe_merge=True)
    merged.to(torch.bfloat16).save_pretrained(folder)
    for path in sorted(
        base.iterdir()
    ):  # tokenizer, chat template: as they are, not as a library would write them again
        if path.is_file() and not path.name.endswith((".safetensors", ".index.json")) and path.name != "config.json":
            shutil.copyfile(path, folder / path.name)
