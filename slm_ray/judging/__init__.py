"""A model judges a finished evaluation; people label a few of the pairs that it judged; both together may decide."""

from slm_ray.judging.ask import Judgement, judge, lines

__all__ = ["Judgement", "judge", "lines"]
