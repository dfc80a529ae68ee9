"""The frame that a recipe's stages run in.

stages.py    the stages there are, and what a stage is given
check.py     everything that can be known to be wrong before anything runs
run_log.py   run.json: where a run stands
run.py       the loop over the stages
"""

from glm5.pipeline.check import validate
from glm5.pipeline.run import run_recipe
from glm5.pipeline.run_log import StageRecord, read_run_log
from glm5.pipeline.stages import STAGES, Stage, StageContext, Summary

__all__ = [
    "STAGES",
    "Stage",
    "StageContext",
    "StageRecord",
    "Summary",
    "read_run_log",
    "run_recipe",
    "validate",
]
