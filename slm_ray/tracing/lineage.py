"""Where an adapter comes from, as the flat facts that a trace carries."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable

from slm_ray import adapters
from slm_ray.errors import AdapterError
from slm_ray.providers import parse
from slm_ray.tracing.record import Lineage


def lineage(specs: Iterable[str], adapters_dir: str | None) -> dict[str, Lineage]:
    """Where the served adapters among the models come from, by spec; nothing for one whose manifest is not there."""
    found: dict[str, Lineage] = {}
    for spec in specs:
        adapter = parse(spec).provider.adapter
        if adapter is None:
            continue
        found[spec] = {"adapter": adapter}
        with contextlib.suppress(AdapterError):
            if adapters_dir:
                found[spec] = adapter_facts(adapters.load_manifest(adapters_dir, adapter))
    return found


def adapter_facts(manifest: adapters.Manifest) -> Lineage:
    """An adapter's origin: its id, its base by content, its training rows and its recipe by digest."""
    return {
        "adapter": manifest.id, "base": manifest.base, "base_fingerprint": manifest.base_fingerprint,
        "training_data_digest": manifest.data_digest, "recipe_digest": manifest.config_digest, "rank": manifest.rank,
    }  # fmt: skip
