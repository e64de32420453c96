"""How long to measure: what the command line says about rounds and counts, for the cases that have their own."""

from dataclasses import dataclass

LEAST = 1000
LEAST_S = 0.5


@dataclass(frozen=True)
class Effort:
    pairs: int | None = None
    scale: float = 1.0

    def rounds(self, usual):
        return self.pairs or usual

    def count(self, usual, multiple_of=1):
        """So many calls or entries. Trials with few of them say whether a case works, not how fast it is."""
        wanted = max(min(LEAST, usual), int(usual * self.scale))
        return -(-wanted // multiple_of) * multiple_of

    def seconds(self, usual):
        return max(min(LEAST_S, usual), usual * self.scale)
