"""Who belongs together: pairs of rows in, groups of rows out (union-find)."""

from __future__ import annotations


class Ties:
    """A growing partition of the rows 0 to `count` - 1; at first every row is alone."""

    def __init__(self, count: int) -> None:
        self._parent = list(range(count))

    def root(self, row: int) -> int:
        """The first row of the row's group."""
        while self._parent[row] != row:
            self._parent[row] = self._parent[self._parent[row]]
            row = self._parent[row]
        return row

    def join(self, left: int, right: int) -> None:
        """Put the groups of two rows together."""
        left, right = self.root(left), self.root(right)
        self._parent[max(left, right)] = min(left, right)

    def roots(self) -> list[int]:
        """For each row the first row of its group: rows with the same number belong together."""
        return [self.root(row) for row in range(len(self._parent))]
