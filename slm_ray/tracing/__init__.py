"""What a run did, as traces: always in `traces.jsonl` of its directory, and with keys in Langfuse.

`Tracer` is what a run holds, `replay` sends a finished run again. A trace is a copy: nothing that happens to it changes a
result, and whatever is lost on the way is in the log and the report.
"""

from slm_ray.tracing.replay import adapter_facts, replay
from slm_ray.tracing.tracer import Tracer, offer_all

__all__ = ["Tracer", "adapter_facts", "offer_all", "replay"]
