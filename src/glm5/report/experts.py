"""Expert balance as heat maps: MoE layers down, experts across, colour for the load relative to an even split."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from glm5.report.curves import spread
from glm5.train.metrics import EvalRecord

_MAX_CELLS = 6000  # of all maps of a stage together: a page must stay light for a model of 75 layers × 256 experts
# Upper borders of the levels of colour: an expert's load over the mean load of its layer.
LOAD_LEVELS = (0.25, 0.5, 0.75, 0.9, 1.1, 1.33, 2.0, 4.0, math.inf)


@dataclass(slots=True)
class HeatMap:
    """Expert load of every MoE layer at one moment, as one SVG path for each level of `LOAD_LEVELS`."""

    step: int
    tokens: int
    layers: int
    experts: int
    paths: list[str]
    busiest: str


def heat_maps(evals: Sequence[EvalRecord]) -> list[HeatMap]:
    """Up to four maps spread over the training, the newest last; fewer where a model has very many experts."""
    loaded = [e for e in evals if e.expert_load]
    if not loaded:
        return []
    cells = sum(len(layer) for layer in loaded[-1].expert_load)
    return [_heat_map(loaded[i]) for i in spread(len(loaded), min(4, max(1, _MAX_CELLS // cells)))]


def _heat_map(record: EvalRecord) -> HeatMap:
    experts = max(len(layer) for layer in record.expert_load)
    paths = [""] * len(LOAD_LEVELS)
    busiest = (0.0, 0, 0)
    for row, layer in enumerate(record.expert_load):
        mean = sum(layer) / len(layer)
        for column, load in enumerate(layer):
            relative = load / mean if mean else 0.0
            if math.isfinite(relative):
                busiest = max(busiest, (relative, row, column))
                level = next(i for i, border in enumerate(LOAD_LEVELS) if relative < border)
                paths[level] += f"M{column} {row}h1v1h-1z"
    relative, row, column = busiest
    where = f"busiest: expert {column} of MoE layer {row}, {relative:.2f}× its share"
    return HeatMap(record.step, record.tokens, len(record.expert_load), experts, paths, where)
