"""The settings of pre-training.

One word has one meaning: a *row* is one sequence of `context_length` tokens, a *step* is one update of the weights, a
*micro-batch* is what one process holds in memory at a time. Sources in brackets are those of sections.py.
"""

from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import Field

from glm5.recipe.sections import Count, Positive, Problem, Section

PositiveFloat = Annotated[float, Field(gt=0)]
NonNegativeFloat = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]


class Phase(Section):
    """`[[pretrain.phases]]`: one stretch of the training and its mixture of sources."""

    name: str = Field(min_length=1, description="What this stretch is called in curves and logs.")
    until: float = Field(gt=0, le=1, description="Where it ends, as a share of pretrain.tokens; the last ends at 1.0.")
    weights: dict[str, NonNegativeFloat] = Field(
        min_length=1,
        description="How often a source, or a kind (general, code, reasoning), is drawn relative to the others.",
    )

    def problems(self) -> Iterator[Problem]:
        """Something must be drawn."""
        if not any(self.weights.values()):
            yield Problem(("weights",), "are all 0, so this phase would draw nothing")


class PretrainSection(Section):
    """`[pretrain]`: next-token prediction from random weights to a base model."""

    phases: list[Phase] = Field(
        min_length=1,
        description="The data mixture over time: general text first, code and reasoning later. [GLM-5 §2.2]",
    )

    # how much, and in which portions
    context_length: Positive = Field(description="Tokens in a row; 4K in pre-training. [GLM-5 fig. 5]")
    tokens: Positive = Field(description="Tokens to train on altogether; 27T. [GLM-5 §1]")
    rows_per_step: Positive = Field(
        description="Sequences per optimiser step, over all processes; 64M tokens. [GLM-4.5]"
    )
    rows_per_step_start: Positive | None = Field(
        None, description="Sequences in the first step, where the batch grows; 16M tokens. [GLM-4.5]"
    )
    batch_warmup_tokens: Count = Field(
        0, description="Tokens over which the batch grows from rows_per_step_start; 500B. [GLM-4.5]"
    )
    tokens_per_microbatch: Positive = Field(description="Tokens one process holds in memory at a time, at most. [ours]")

    # learning rates
    lr_muon: PositiveFloat = Field(description="Peak learning rate of the matrices; 2e-4. [GLM-5 App. A]")
    lr_adamw: PositiveFloat = Field(
        description="Peak learning rate of embeddings, head, norms and biases; 2e-4. [GLM-5 App. A]"
    )
    lr_final_fraction: Share = Field(
        0.2, description="Last learning rate as a share of the peak; 4e-5 of 2e-4. [GLM-5 App. A]"
    )
    warmup_steps: Count = Field(description="Steps over which the learning rate rises from 0. [ours]")
    schedule: Literal["cosine", "linear", "constant", "wsd"] = Field(
        "cosine", description="Shape after the warm-up; wsd stays at the peak, then falls linearly. [GLM-5 App. A]"
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
        0.3, description="Weight of the mean of the MTP losses; 0.3, late in training 0.1. [GLM-4.5]"
    )
    mtp_rows_fraction: float = Field(
        1.0,
        gt=0,
        le=1,
        description="Share of the rows on which the MTP losses are computed; for small machines. [ours]",
    )
    balance_bias_rate: NonNegativeFloat = Field(
        1e-3, description="Step of the routing biases that balance the experts without a loss. [GLM-4.5]"
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
    eval_every_steps: Positive = Field(description="Steps between scorings of held-out text. [ours]")
    eval_bytes: Positive = Field(200_000, description="Held-out bytes scored of each source, at most. [ours]")
    sample_every_steps: Count = Field(
        0, description="Steps between continuations of sample_prompts; 0 is never. [ours]"
    )
    sample_prompts: list[str] = Field([], description="Texts the model continues, to be read by people. [ours]")
    save_every_steps: Positive = Field(description="Steps between checkpoints. [ours]")
    keep_checkpoints: Positive = Field(2, description="Newest checkpoints kept; older ones are deleted. [ours]")

    @property
    def tokens_per_step(self) -> int:
        """Tokens in one step after the batch warm-up."""
        return self.rows_per_step * self.context_length

    def problems(self) -> Iterator[Problem]:
        """Portions that do not fit into each other, phases that do not add up, samples that would never be taken."""
        yield from self._portion_problems()
        yield from self._phase_problems()
        if self.sample_every_steps and not self.sample_prompts:
            yield Problem(("sample_prompts",), "is empty, so sample_every_steps would sample nothing")
        if self.sample_prompts and not self.sample_every_steps:
            yield Problem(("sample_every_steps",), "is 0, so sample_prompts would never be used")

    def _portion_problems(self) -> Iterator[Problem]:
        if self.tokens_per_microbatch % self.context_length:
            yield Problem(
                ("tokens_per_microbatch",),
                f"= {self.tokens_per_microbatch} is not a multiple of context_length = {self.context_length}",
            )
        first = self.rows_per_step if self.rows_per_step_start is None else self.rows_per_step_start
        for key, value in (("rows_per_step", self.rows_per_step), ("rows_per_step_start", first)):
            # rows_per_step_start falls back on rows_per_step, which is reported already.
            if value % self.processes and getattr(self, key) is not None:
                yield Problem((key,), f"= {value} cannot be shared evenly by processes = {self.processes}")
        if first > self.rows_per_step:
            yield Problem(("rows_per_step_start",), f"= {first} is above rows_per_step = {self.rows_per_step}")
        if (self.rows_per_step_start is None) != (self.batch_warmup_tokens == 0):
            yield Problem(("batch_warmup_tokens",), "and rows_per_step_start only work together; give both or neither")
        if self.tokens < self.tokens_per_step:
            yield Problem(
                ("tokens",),
                f"= {self.tokens} is less than one step: rows_per_step × context_length = {self.tokens_per_step}",
            )
        elif self.warmup_steps * first * self.context_length >= self.tokens:
            yield Problem(
                ("warmup_steps",),
                f"= {self.warmup_steps} takes all of tokens = {self.tokens}; nothing is left to train",
            )

    def _phase_problems(self) -> Iterator[Problem]:
        begins = 0.0
        for index, phase in enumerate(self.phases):
            if phase.until <= begins:
                yield Problem(
                    ("phases", index, "until"), f"= {phase.until} does not come after {begins}, where it begins"
                )
            begins = phase.until
        if begins != 1.0:
            yield Problem(("phases", len(self.phases) - 1, "until"), f"= {begins}, but the last phase must end at 1.0")
