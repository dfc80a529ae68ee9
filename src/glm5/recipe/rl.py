"""The settings of reinforcement learning: reasoning RL, agentic RL, general RL and distillation are the same stage with
other numbers.

One word has one meaning: a *prompt* is one task, its *samples* are the rollouts made of it (together a *group*), an
*update* is one pass of the optimiser over the samples of `prompts_per_step` groups, a *version* counts the weights the
rollout engines were given. Sources in brackets are those of sections.py.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from glm5.recipe.pretrain import Momentum, NonNegativeFloat, PositiveFloat, Share
from glm5.recipe.sections import Count, Positive, Problem, Section

LossName = Literal["icepop", "double_sided", "tis", "policy_gradient"]


class TaskSection(Section):
    """`[[STAGE.tasks]]`: one environment of the mixture."""

    environment: str = Field(
        min_length=1,
        description='A built-in environment, or one of yours: "package.module:Class", "file.py:Class". [ours]',
    )
    share: PositiveFloat = Field(1.0, description="Wanted share of the trained groups, relative to the others'. [ours]")
    options: dict[str, Any] = Field(default_factory=dict, description="What the environment itself is told. [ours]")
    teacher: str | None = Field(
        None,
        description="Distillation: checkpoint folder of the teacher of these prompts, or NAME of a stage. [GLM-5 §3.5]",
    )
    held_out_tasks: Count = Field(200, description="Tasks of its held-out set that an evaluation runs. [ours]")


class EngineSection(Section):
    """`[STAGE.engine]`: what makes the rollouts."""

    kind: Literal["glm5", "vllm", "sglang"] = Field("glm5", description="Our engine, or a server of another. [ours]")
    urls: list[str] = Field(default_factory=list, description="Addresses of the servers, for vllm and sglang. [ours]")
    count: Positive = Field(1, description="Engines of our own to start, each a process. [ours]")
    threads: Count = Field(1, description="Threads of one engine; 0 leaves the library's choice. [ours]")
    max_sequences: Positive = Field(128, description="Rollouts one engine decodes at once. [ours]")
    max_batch_tokens: Positive = Field(1024, description="Positions one engine computes in a step. [ours]")
    cache_bytes: Positive = Field(256 << 20, description="Memory of one engine's cache. [ours]")
    draft_tokens: Count = Field(0, description="Tokens the prediction layer drafts in a step. [GLM-5 §3.6]")
    batch_invariant: bool = Field(
        False, description="Same bits whatever else is in the batch; makes a synchronous run repeatable. [ours]"
    )
    dtype: Literal["float32", "bfloat16"] = Field("float32", description="Precision of the rollouts. [ours]")

    def problems(self) -> Iterator[Problem]:
        """Servers have addresses, our own engines have none."""
        if (self.kind == "glm5") == bool(self.urls):
            yield Problem(("urls",), "are needed for vllm and sglang, and meaningless for our own engine")


class RLSection(Section):
    """`[reasoning_rl]`, `[agentic_rl]`, `[general_rl]`, `[distillation]`: rollouts and updates."""

    tasks: list[TaskSection] = Field(min_length=1, description="The mixture of environments.")
    checkpoint: str | None = Field(
        None, description="Where training begins: a folder, or the NAME of a stage; the stage before if absent. [ours]"
    )
    engine: EngineSection = Field(
        default_factory=lambda: EngineSection.model_validate({}), description="What makes the rollouts."
    )

    # how much
    updates: Positive = Field(description="Updates of the weights altogether. [ours]")
    prompts_per_step: Positive = Field(32, description="Groups in one update; 32. [GLM-5 §3.2]")
    samples_per_prompt: Positive = Field(32, description="Rollouts of one prompt; 32, in distillation 1. [GLM-5 §3.2]")

    # rollouts
    context_length: Positive = Field(description="Tokens of one rollout, prompt and answers, at most. [ours]")
    max_tokens: Positive = Field(description="Tokens of one answer at most. [ours]")
    temperature: PositiveFloat = Field(1.0, description="Of the rollouts. [ours]")
    thinking: bool = Field(True, description="Whether answers begin with a thought. [GLM-5 §3.1]")
    deadline_seconds: PositiveFloat = Field(600.0, description="One rollout, its tools and its grading. [ours]")
    max_failures_in_a_row: Positive = Field(
        64, description="So many failed rollouts without one that works end the run, finished work saved. [ours]"
    )

    # asynchrony
    staleness_bound: Count = Field(
        1, description="Versions rollouts may be behind when they start; 0 is synchronous. [ours; not disclosed]"
    )
    max_version_lag: Count = Field(
        4, description="Samples whose first token is older than this are dropped: tau. [ours; GLM-5 §3.3 names none]"
    )
    push_every: Positive = Field(1, description="Updates between two pushes of weights: K. [ours; not disclosed]")
    delta_sync: bool = Field(True, description="Push only tensors that changed. [ours]")
    reset_optimizer: bool = Field(False, description="Forget momenta after each push. [GLM-5 §3.3]")
    filter_zero_variance: bool = Field(True, description="Leave out groups whose rewards are all equal. [ours]")

    # the loss
    loss: LossName = Field("icepop", description="icepop for reasoning, double_sided for agents. [GLM-5 §3.2, §3.3]")
    advantage: Literal["normalised", "centred"] = Field(
        "normalised", description="(R - mean) / std, or R - mean. [GLM-5 §3.2, §3.3]"
    )
    reduction: Literal["token", "sample"] = Field(
        "token", description="Mean over tokens, or over samples of means. [ours]"
    )
    icepop_beta: float = Field(
        2.0, gt=1, description="Band of the mismatch between engines: 1/beta to beta. [GLM-5 §3.2]"
    )
    eps_low: PositiveFloat = Field(0.2, description="Lower width of the ratio's band. [GLM-5 §3.2]")
    eps_high: PositiveFloat = Field(0.28, description="Upper width of the ratio's band. [GLM-5 §3.2]")
    minibatches: Positive = Field(
        1, description="Optimiser steps made of one batch of rollouts; 1 is on-policy. [GLM-5 §3.2]"
    )

    # the optimiser
    lr_muon: PositiveFloat = Field(description="Peak learning rate of the matrices. [ours]")
    lr_adamw: PositiveFloat = Field(description="Peak learning rate of embeddings, head and norms. [ours]")
    schedule: Literal["linear", "constant", "cosine"] = Field("linear", description="Shape over the updates. [ours]")
    lr_final_fraction: Share = Field(0.0, description="Last learning rate as a share of the peak. [ours]")
    warmup_updates: Count = Field(0, description="Updates over which the learning rate rises from 0. [ours]")
    weight_decay: NonNegativeFloat = Field(0.0, description="Decoupled decay of the matrices. [ours]")
    muon_momentum: Momentum = Field(0.95, description="Momentum of Muon. [GLM-4.5 §2.4]")
    adamw_betas: tuple[Momentum, Momentum] = Field((0.9, 0.95), strict=False, description="Betas of AdamW. [ours]")
    grad_clip: PositiveFloat = Field(1.0, description="Largest norm of the gradient. [ours]")
    balance_bias_rate: NonNegativeFloat = Field(0.0, description="Step of the routing biases; none in RL. [ours]")
    train_indexer: bool = Field(False, description="The indexer is frozen in RL. [GLM-5 §3.2]")
    dtype: Literal["float32", "bfloat16"] = Field("bfloat16", description="Precision of the matrix products. [ours]")
    tokens_per_microbatch: Positive = Field(4096, description="Tokens a trainer holds in memory at a time. [ours]")
    trainers: Positive = Field(1, description="Trainer processes. [ours]")
    trainer_threads: Count = Field(1, description="Threads of one trainer; 0 leaves the library's choice. [ours]")

    # what is seen and kept on the way
    eval_every_updates: Positive = Field(20, description="Updates between evaluations on held-out tasks. [ours]")
    eval_seed: Count = Field(0, description="Of the sampled evaluation; the tasks are fixed. [ours]")
    save_every_updates: Positive = Field(10, description="Updates between checkpoints. [ours]")
    keep_checkpoints: Positive = Field(2, description="Newest checkpoints that stay. [ours]")

    def problems(self) -> Iterator[Problem]:
        """Groups need something to compare; a batch can be cut evenly."""
        names = [task.environment for task in self.tasks]
        if self.samples_per_prompt == 1 and not all(task.teacher for task in self.tasks):
            yield Problem(("samples_per_prompt",), "of 1 leaves no group to compare with: only distillation can use it")
        if self.max_tokens >= self.context_length:
            yield Problem(("max_tokens",), "must leave room for the prompt in context_length")
        if self.prompts_per_step % self.minibatches:
            yield Problem(("minibatches",), "must divide prompts_per_step")
        for repeated in sorted({name for name in names if names.count(name) > 1}):
            yield Problem(("tasks",), f"names '{repeated}' twice")


class RLRequest(Section):
    """What `glm5 rl` is asked to do: one stage, without the rest of a recipe."""

    name: str = Field(min_length=1, description="What the run is called.")
    output: Path = Field(strict=False, description="Folder for all the run makes, from where the command is started.")
    seed: Count = Field(0, description="Decides every random choice of the run. [ours]")
    rl: RLSection = Field(description="Reinforcement learning.")

    def problems(self) -> Iterator[Problem]:
        """There is no stage before this one to take a model from."""
        if self.rl.checkpoint is None:
            yield Problem(("rl", "checkpoint"), "is missing: name the folder of the model to begin with")
