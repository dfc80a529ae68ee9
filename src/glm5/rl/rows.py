"""Training samples → packed rows, so that short and long rollouts fill the same tensors without much padding."""

import math
from collections.abc import Sequence

import torch

from glm5.data.packing import pack
from glm5.errors import GLM5Error
from glm5.ops.loss import IGNORE
from glm5.recipe.rl import RLSection
from glm5.rl.losses import sample_mean, token_mean
from glm5.rl.objective import PolicyRows
from glm5.rl.records import TrainingSample

_ROUND = 32  # row widths, so that few different shapes occur


def pack_samples(samples: Sequence[TrainingSample], settings: RLSection, multiple: int = 1) -> PolicyRows:
    """Lay samples into rows as wide as the longest needs, with document borders.

    Args:
        multiple: the number of rows is rounded up to one of this, with empty rows.

    Raises:
        GLM5Error: a sample is longer than the context, or nothing in them is to be trained.
    """
    longest = max((len(sample.ids) for sample in samples), default=0) - 1
    if longest >= settings.context_length:
        raise GLM5Error(
            f"a sample of {longest + 1} tokens does not fit context_length = {settings.context_length}: raise it"
        )
    width = min(settings.context_length, max(4 * _ROUND, math.ceil(longest / _ROUND) * _ROUND))
    bins = pack([len(sample.ids) - 1 for sample in samples], width)
    count = math.ceil(len(bins) / multiple) * multiple
    rows = PolicyRows(
        input_ids=torch.zeros(count, width, dtype=torch.int64),
        targets=torch.full((count, width), IGNORE),
        document_ids=torch.full((count, width), -1),
        # Padding counts on: were its positions equal, it would see, and might select, only what stands behind it.
        positions=torch.arange(width).repeat(count, 1),
        advantages=torch.zeros(count, width),
        rollout_logprobs=torch.zeros(count, width),
        old_logprobs=torch.full((count, width), math.nan),
        teacher_logprobs=torch.full((count, width), math.nan),
        weights=torch.zeros(count, width),
    )
    factors = (sample_mean if settings.reduction == "sample" else token_mean)(samples)
    for row, members in enumerate(bins):
        start = 0
        for document, index in enumerate(members):
            sample = samples[index]
            length = len(sample.ids) - 1
            span = (row, slice(start, start + length))
            mask = torch.tensor(sample.loss_mask[1:])
            ids = torch.tensor(sample.ids)
            rows.input_ids[span] = ids[:-1]
            rows.targets[span] = torch.where(mask, ids[1:], IGNORE)
            rows.document_ids[span] = document
            rows.positions[span] = torch.arange(length)
            rows.advantages[span] = sample.advantage
            rows.rollout_logprobs[span] = torch.tensor(sample.rollout_logprobs[1:])
            rows.weights[span] = mask * factors[index]
            if sample.teacher_logprobs is not None:
                rows.teacher_logprobs[span] = torch.tensor(sample.teacher_logprobs[1:])
            start += length
    if not bool((rows.targets != IGNORE).any()):
        raise GLM5Error("a batch without one token to train: every rollout was empty or masked")
    return rows
