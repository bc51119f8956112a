"""How is searched."""

from __future__ import annotations

import math
from dataclasses import dataclass

SAMPLERS = ("cmaes", "tpe", "nsga2", "random")
"""Ways to search, by Optuna's names for them."""


@dataclass(frozen=True, slots=True)
class SearchOptions:
    """How is searched.

    Parameters:
        evaluations: candidates, at most.
        timeout: seconds after which no further candidate is begun, or None.
        seed: of the search.
        sampler: one of :data:`SAMPLERS`; None for what suits the genome.
        population: candidates of a generation, or None for what suits the genome.
        sigma0: first step of CMA-ES, as a share of the bounds.
        halving: judge by a part of all text and examples first, and only the better ones by more.
        scattered: begin at a random point.
        workers: candidates that are judged at a time.
    """

    evaluations: int = 100
    timeout: float | None = None
    seed: int = 0
    sampler: str | None = None
    population: int | None = None
    sigma0: float = 1 / 6
    halving: bool = False
    scattered: bool = False
    workers: int = 1

    def sampler_for(self, numbers: int, objectives: int) -> str:
        """The sampler for so many genes that are numbers, and so many objectives."""
        if self.sampler:
            return self.sampler
        return "nsga2" if objectives > 1 else "cmaes" if numbers > 1 else "tpe"

    def population_of(self, genes: int) -> int:
        """Candidates of a generation: as many as CMA-ES takes by default, if nothing else is asked for.

        Example:
            >>> SearchOptions().population_of(4), SearchOptions().population_of(40)
            (8, 15)
        """
        return self.population or 4 + math.floor(3 * math.log(max(2, genes)))

    def generation_of(self, genes: int, objectives: int) -> int:
        """Candidates that are drawn before the first of them is judged; TPE learns from each worker's last one."""
        return self.workers if self.sampler_for(genes, objectives) == "tpe" else self.population_of(genes)
