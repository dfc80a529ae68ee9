"""The settings of supervised fine-tuning.

A *row* is `context_length` positions filled with whole training sequences, an *epoch* is every row of every source as
often as the source's weight says. Sources in brackets are those of sections.py.
"""

from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field

from glm5.recipe.pretrain import Momentum, NonNegativeFloat, PositiveFloat, Share
from glm5.recipe.sections import Count, Positive, Problem, Section

FilePath = Annotated[Path, Field(strict=False)]


class SftSource(Section):
    """`[[sft.data]]`: one file of conversations or recorded rollouts."""

    path: FilePath = Field(
        description="A .jsonl or .parquet file; `{output}` in it stands for the run's folder. [ours]"
    )
    name: str | None = Field(
        None, pattern=r"^[^/.][^/]*$", description="What it is called in curves; the file's name if absent. [ours]"
    )
    weight: PositiveFloat = Field(1.0, description="How often it is read in one epoch; 0.5 is every other row. [ours]")
    thinking: Literal["interleaved", "preserved", "off"] = Field(
        "interleaved", description="Thinking mode of conversations that do not name theirs. [GLM-5 §3.1]"
    )
    min_reward: float | None = Field(
        None, description="Recorded rollouts with a smaller reward are left out; they need it. [ours]"
    )

    @property
    def title(self) -> str:
        """What it is called."""
        return self.name or self.path.stem


class SftSection(Section):
    """`[sft]`: supervised fine-tuning of a base model on conversations; only what the assistant produced is learned."""

    data: list[SftSource] = Field(min_length=1, description="What is learned.")
    checkpoint: FilePath | None = Field(
        None, description="Folder of the model to begin from; the run's pre-trained one if absent. [ours]"
    )
    held_out_fraction: float = Field(
        0.05, ge=0, lt=1, description="Share of each file's records that is scored and never trained on. [ours]"
    )

    # how much, and in which portions
    context_length: Positive = Field(
        4096, description="Positions of a row, and of the longest sequence; 202,752. [GLM-5 §3.1]"
    )
    too_long: Literal["drop", "truncate"] = Field(
        "drop", description="What happens to sequences that are longer: left out, or cut at the end. [ours]"
    )
    epochs: PositiveFloat = Field(2.0, description="How often the data is read. [ours]")
    rows_per_step: Positive = Field(8, description="Rows per optimiser step, over all processes. [ours]")
    tokens_per_microbatch: Positive | None = Field(
        None, description="Tokens one process holds in memory at a time, at most; one row if absent. [ours]"
    )

    # learning rates
    lr_muon: PositiveFloat = Field(2e-5, description="Peak learning rate of the matrices. [ours]")
    lr_adamw: PositiveFloat = Field(2e-5, description="Peak learning rate of embeddings, head, norms, biases. [ours]")
    lr_final_fraction: Share = Field(0.1, description="Last learning rate as a share of the peak. [ours]")
    warmup_fraction: float = Field(
        0.03, ge=0, lt=1, description="Share of the steps over which the learning rate rises from 0. [ours]"
    )
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="Shape after the warm-up; wsd stays at the peak, then falls linearly. [ours]"
    )
    wsd_decay_fraction: float = Field(
        0.2, gt=0, le=1, description="With schedule wsd: the share of the tokens, at the end, that decays. [ours]"
    )

    # optimiser
    weight_decay: NonNegativeFloat = Field(0.1, description="Decoupled decay of the matrices. [GLM-4.5 §2.4]")
    muon_momentum: Momentum = Field(0.95, description="Momentum of Muon. [GLM-4.5 §2.4]")
    muon_split: bool = Field(
        True, description="Orthogonalise the up-projections of attention head by head. [GLM-5 §2.1, Muon Split]"
    )
    adamw_betas: tuple[Momentum, Momentum] = Field((0.9, 0.95), strict=False, description="Betas of AdamW. [ours]")
    grad_clip: PositiveFloat = Field(
        1.0, description="Largest norm of the gradient; longer ones are scaled down. [ours]"
    )

    # extra losses
    mtp_steps: Count = Field(3, description="Further tokens predicted by the one shared MTP layer. [GLM-5 §2.1]")
    mtp_loss_weight: NonNegativeFloat = Field(
        0.1, description="Weight of the mean of the MTP losses; 0.1 late in training. [GLM-4.5]"
    )
    mtp_rows_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the rows on which the MTP losses are computed; for small machines. [ours]",
    )
    balance_bias_rate: NonNegativeFloat = Field(
        0.0, description="Step of the routing biases that balance the experts; 0 after 15T tokens. [GLM-4.5]"
    )
    balance_loss_weight: NonNegativeFloat = Field(
        1e-4, description="Weight of the sequence-level balance loss. [GLM-4.5]"
    )

    # memory and speed
    processes: Positive = Field(
        1, description="Data-parallel processes on this machine; on a cluster torchrun starts them instead. [ours]"
    )
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Precision of the matrix products. [ours]")
    activation_checkpointing: bool = Field(
        False, description="Recompute activations in the backward pass instead of keeping them. [GLM-5 §2.4]"
    )
    loss_chunk_tokens: Positive = Field(
        4096,
        description="Tokens whose logits exist at a time, in the chunked output projection. [GLM-5 §2.4; size ours]",
    )

    # what is seen and kept on the way
    eval_every_steps: Positive = Field(50, description="Steps between scorings of held-out conversations. [ours]")
    eval_rows: Positive = Field(64, description="Held-out rows scored of each file, at most. [ours]")
    sample_every_steps: Count = Field(0, description="Steps between answers to sample_prompts; 0 is never. [ours]")
    sample_prompts: list[str] = Field([], description="What a user says to the model, to be read by people. [ours]")
    save_every_steps: Positive = Field(100, description="Steps between checkpoints. [ours]")
    keep_checkpoints: Positive = Field(2, description="Newest checkpoints kept; older ones are deleted. [ours]")

    def within(self, output: Path) -> "SftSection":
        """The same with `{output}` in the paths of its files replaced by the run's folder."""
        data = [
            source.model_copy(update={"path": Path(str(source.path).replace("{output}", str(output)))})
            for source in self.data
        ]
        return self.model_copy(update={"data": data})

    def problems(self) -> Iterator[Problem]:
        """Portions that do not fit into each other, two sources of one name, samples that would never be taken."""
        repeated = {title for title, count in Counter(source.title for source in self.data).items() if count > 1}
        for index, source in enumerate(self.data):
            if source.title == "all":
                yield Problem(("data", index, "name"), "'all' is what the total is called; choose another")
            if source.title in repeated:
                yield Problem(("data", index, "name"), f"'{source.title}' is the name of two files; give each its own")
        if (self.tokens_per_microbatch or self.context_length) % self.context_length:
            yield Problem(
                ("tokens_per_microbatch",),
                f"= {self.tokens_per_microbatch} is not a multiple of context_length = {self.context_length}",
            )
        if self.rows_per_step % self.processes:
            yield Problem(
                ("rows_per_step",),
                f"= {self.rows_per_step} cannot be shared evenly by processes = {self.processes}",
            )
        if self.sample_every_steps and not self.sample_prompts:
            yield Problem(("sample_prompts",), "is empty, so sample_every_steps would sample nothing")
        if self.sample_prompts and not self.sample_every_steps:
            yield Problem(("sample_every_steps",), "is 0, so sample_prompts would never be used")


class SftRequest(Section):
    """What `glm5 sft` is asked to do: one section, without the rest of a recipe."""

    sft: SftSection = Field(description="Supervised fine-tuning.")
