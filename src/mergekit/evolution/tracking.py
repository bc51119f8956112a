"""A search as a run of Weights & Biases."""

from __future__ import annotations

from pathlib import Path
from statistics import fmean, pstdev
from typing import Any, final

from mergekit.errors import UnsupportedError
from mergekit.evolution.record import measured
from mergekit.evolution.search import Found


@final
class Tracker:
    """Logs a search to Weights & Biases.

    Parameters:
        project: name of the project.
        entity: user or team, or None for the user's own.
        settings: what the run is called by.

    Raises:
        UnsupportedError: wandb is not installed.
    """

    def __init__(self, project: str, entity: str | None, settings: dict[str, Any]) -> None:
        try:
            import wandb
        except ImportError as error:
            raise UnsupportedError(
                "`--wandb` needs wandb, which is not installed", hint="`pip install wandb`"
            ) from error
        self._wandb = wandb
        self._run = wandb.init(project=project, entity=entity, config=settings)
        self._logged = 0

    def generation(self, found: Found) -> None:
        """Log the trials that are new."""
        new = [entry for entry in found.entries[self._logged :] if entry.counts]
        self._logged = len(found.entries)
        if not new:
            return
        scores = [entry.judged.score for entry in new]
        row = {"population/score_mean": fmean(scores), "population/score_std": pstdev(scores)}
        for name in measured(found, new[0].judged):
            values = [measured(found, entry.judged)[name] for entry in new]
            row |= {f"population/{name}_mean": fmean(values), f"population/{name}_max": max(values)}
            row |= {f"population/{name}_min": min(values)}
        best = found.best.judged.score
        self._run.log({**row, "best_score": best, "evaluations": self._logged}, step=self._logged)

    def finish(self, best: Path) -> None:
        """Log the best recipe, if there is one, and end the run."""
        if best.is_file():
            artifact = self._wandb.Artifact("best_config", type="merge_config")
            artifact.add_file(str(best))
            self._run.log_artifact(artifact)
        self._run.finish()
