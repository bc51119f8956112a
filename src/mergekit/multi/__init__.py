"""Pipelines: several merges in one file, each of which may take the result of others in place of a model."""

from mergekit.multi.arranging import Arrangement, MultiOptions, Step, arranged
from mergekit.multi.reading import Pipeline, Stage, read_pipeline
from mergekit.multi.running import Done, run_pipeline

__all__ = [
    "Arrangement",
    "Done",
    "MultiOptions",
    "Pipeline",
    "Stage",
    "Step",
    "arranged",
    "read_pipeline",
    "run_pipeline",
]
