"""A network, a stream of rows and a trainer, all as small as they can be with every part of the real ones in them."""

import json
from pathlib import Path
from typing import Any

import torch

from glm5.data.loader import Batch
from glm5.model.config import ModelConfig
from glm5.model.presets import preset
from glm5.model.transformer import Transformer
from glm5.ops.loss import IGNORE
from glm5.train.checkpoints import CheckpointFolder
from glm5.train.metrics import MetricsLog, StepRecord, read_metrics
from glm5.train.objective import MicroBatch, PretrainingObjective
from glm5.train.optimizer import Optimizers
from glm5.train.parallel import World
from glm5.train.schedule import BatchSize, LearningRate
from glm5.train.trainer import Trainer, TrainerSettings

LENGTH = 24  # tokens in a row
VOCABULARY = 48

# Three heads, six rows of q_a_proj, 22 of kv_a_proj: over 2, 3 or 4 processes some shards hold whole heads and some do
# not, some are uneven, and one is empty. Twelve experts can be shared by 2, 3 and 4.
SMALL: dict[str, Any] = {
    "vocab_size": VOCABULARY, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 3,
    "num_key_value_heads": 3, "q_lora_rank": 6, "kv_lora_rank": 14, "qk_nope_head_dim": 8, "qk_rope_head_dim": 8,
    "v_head_dim": 16, "index_topk": 16, "index_n_heads": 4, "index_head_dim": 16, "intermediate_size": 30,
    "first_k_dense_replace": 1, "moe_intermediate_size": 10, "n_routed_experts": 12, "num_experts_per_tok": 2,
    "max_position_embeddings": 256, "initializer_range": 0.1,
}  # fmt: skip


def small_config(**changes: Any) -> ModelConfig:
    return preset("nano", **{**SMALL, **changes})


def small_model(seed: int = 0, **changes: Any) -> Transformer:
    """Fresh weights; the indexer is frozen, as in pre-training."""
    model = Transformer(small_config(**changes))
    model.init_weights(seed)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(".indexer." not in name)
    return model


class CountingRows:
    """Rows of documents that count upwards, each by a stride of its own: learnable, and a function of the row
    number."""

    def __init__(self, length: int = LENGTH, seed: int = 0) -> None:
        self.length, self.seed, self.row = length, seed, 0

    def next_batch(self, rows: int) -> Batch:
        batch = [counting_row(self.seed * 1_000_003 + self.row + i, self.length) for i in range(rows)]
        self.row += rows
        columns = [torch.stack(column) for column in zip(*batch, strict=True)]
        return Batch(columns[0], columns[1], columns[2], columns[3], phase="all", sources=["counting"] * rows)

    def state_dict(self) -> dict[str, object]:
        return {"row": self.row}

    def load_state_dict(self, state: dict[str, object]) -> None:
        self.row = int(str(state["row"]))


def counting_row(number: int, length: int) -> MicroBatch:
    """Inputs, targets, documents and positions of one row, [length] each."""
    generator = torch.Generator().manual_seed(number)
    ids: list[int] = []
    documents: list[int] = []
    positions: list[int] = []
    while len(ids) <= length:
        first, stride, size = (int(torch.randint(low, high, (), generator=generator)) for low, high in
                               ((1, VOCABULARY), (1, 4), (3, length)))  # fmt: skip
        ids += [0, *((first + stride * i) % (VOCABULARY - 1) + 1 for i in range(size))]
        positions += range(size + 1)
        documents += [documents[-1] + 1 if documents else 0] * (size + 1)
    row = torch.tensor([ids, documents, positions])
    return MicroBatch(row[0, :length], row[0, 1 : length + 1], row[1, :length], row[2, :length])


def batch_of(rows: int, length: int = LENGTH, seed: int = 0) -> MicroBatch:
    batch = CountingRows(length, seed).next_batch(rows)
    return MicroBatch(batch.input_ids, batch.targets, batch.document_ids, batch.positions)


def ignore_some(batch: MicroBatch, seed: int = 0) -> MicroBatch:
    """The same rows, a fifth of whose targets do not count."""
    away = torch.rand(batch.targets.shape, generator=torch.Generator().manual_seed(seed)) < 0.2
    return batch._replace(targets=batch.targets.masked_fill(away, IGNORE))


def objective(**changes: Any) -> PretrainingObjective:
    values: dict[str, Any] = {
        "mtp_steps": 2, "mtp_loss_weight": 0.3, "mtp_rows_fraction": 1.0, "balance_loss_weight": 1e-2,
        "loss_chunk_tokens": 40, "dtype": torch.float32,
    }  # fmt: skip
    return PretrainingObjective(**{**values, **changes})


def small_trainer(
    folder: Path,
    *,
    model: Transformer | None = None,
    world: World | None = None,
    steps: int = 20,
    rows_per_step: int = 8,
    rows_per_microbatch: int = 8,
    lr: float = 0.01,
    **changes: Any,
) -> Trainer:
    """A trainer ready to run, logging to `folder / "metrics.jsonl"` and saving into `folder / "checkpoints"`.

    Args:
        changes: of `TrainerSettings`.
    """
    model, world = small_model() if model is None else model, world or World()
    tokens = steps * rows_per_step * LENGTH
    values: dict[str, Any] = {
        "context_length": LENGTH, "total_tokens": tokens, "rows_per_microbatch": rows_per_microbatch, "lr_muon": lr,
        "lr_adamw": lr, "learning_rate": LearningRate("cosine", 0.1, 3, tokens),
        "batch_size": BatchSize(rows_per_step, rows_per_step, 0, rows_per_microbatch), "grad_clip": 0.5,
        "balance_bias_rate": 1e-3, "save_every_steps": 1000,
    }  # fmt: skip
    text_files = folder / "tokenizer"
    return Trainer(
        model,
        Optimizers.build(model, dtype=torch.float32),
        CountingRows(),
        objective(mtp_rows_fraction=1.0),
        TrainerSettings(**{**values, **changes}),
        CheckpointFolder(folder / "checkpoints", text_files, keep=2, world=world),
        MetricsLog(folder / "metrics.jsonl") if world.is_first else None,
        world,
    )


def steps_of(path: Path) -> list[StepRecord]:
    return [record for record in read_metrics(path) if isinstance(record, StepRecord)]


def curve(path: Path) -> list[list[float]]:
    """What must be equal between two runs of the same training: every number of every step but the times."""
    return [
        [r.step, r.tokens, r.loss, *r.mtp_loss, r.balance_loss, r.grad_norm, r.lr_muon, r.lr_adamw, r.load_violation]
        for r in steps_of(path)
    ]


def read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
