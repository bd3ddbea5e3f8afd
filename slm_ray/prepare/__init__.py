"""Task rows in, three files of examples out: `train.jsonl`, `validation.jsonl`, `test.jsonl`, each row in one shape.

Beside them stand `track.yaml`, the track with its labels, `prepare.json`, what was done, and, where rows were bad,
`bad_rows.jsonl`. The splits share no prompt, the same sources and settings give the same bytes, and no examples are
written before every row is known to be good.
"""

from slm_ray.prepare.ingest import TokenCounter
from slm_ray.prepare.run import Prepared, prepare
from slm_ray.prepare.splits import SPLITS

__all__ = ["SPLITS", "Prepared", "TokenCounter", "prepare"]
