"""The log of live requests: what a route was asked and what its arms answered, kept redacted and read back as rows."""

from slm_ray.traffic.log import TrafficCounts, TrafficLog
from slm_ray.traffic.place import is_traffic
from slm_ray.traffic.read import read_traffic
from slm_ray.traffic.record import Arm, ArmAnswer, Feedback, TrafficRow
from slm_ray.traffic.redaction import Redaction

__all__ = [
    "Arm",
    "ArmAnswer",
    "Feedback",
    "Redaction",
    "TrafficCounts",
    "TrafficLog",
    "TrafficRow",
    "is_traffic",
    "read_traffic",
]
