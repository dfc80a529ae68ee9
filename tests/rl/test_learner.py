"""The trainer's side: one update does what its equation says, and nothing is lost by stopping between two."""

from pathlib import Path

import pytest
import torch

from glm5.errors import GLM5Error
from glm5.model.checkpoint import load_checkpoint
from glm5.ops.loss import IGNORE
from glm5.recipe.rl import RLSection
from glm5.rl.learner import Learner
from glm5.rl.records import TrainingSample
from glm5.rl.rows import pack_samples
from glm5.train.parallel import World
from tests.rl import small_rl


def samples(count: int = 6, seed: int = 0) -> list[TrainingSample]:
    """Prompts of three tokens, answers of two to seven, good and bad in turn."""
    generator = torch.Generator().manual_seed(seed)
    made = []
    for number in range(count):
        answer = 2 + int(torch.randint(0, 6, (), generator=generator))
        ids = torch.randint(1, 200, (3 + answer,), generator=generator).tolist()
        mask = [False] * 3 + [True] * answer
        made.append(
            TrainingSample(
                ids, mask, [-5.0 * trained for trained in mask], [0 if trained else -1 for trained in mask],
                1.0 if number % 2 else -1.0, "icepop", "small", f"r{number}", float(number % 2),
            )
        )  # fmt: skip
    return made


def log_probs(model: torch.nn.Module, sample: TrainingSample) -> torch.Tensor:
    """Of the sample's trained tokens, computed the plain way."""
    ids = torch.tensor([sample.ids])
    scores = model.logits(model(ids[:, :-1], sparse=False).hidden)[0].log_softmax(-1)  # type: ignore[operator]
    chosen = scores.gather(-1, ids[0, 1:, None])[:, 0]
    return chosen[torch.tensor(sample.loss_mask[1:])]


@torch.no_grad()
def total_log_prob(model: torch.nn.Module, sample: TrainingSample) -> float:
    return float(log_probs(model, sample).sum())


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_rl.checkpoint(tmp_path_factory.mktemp("model"))


def learner(start: Path, folder: Path, **changes: object) -> Learner:
    return Learner(settings(**changes), start, folder, World())


def settings(**changes: object) -> RLSection:
    return small_rl.settings(**{"loss": "policy_gradient", "lr_muon": 2e-3, "lr_adamw": 2e-3, **changes})


@pytest.mark.parametrize("reduction", ["token", "sample"])
def test_the_gradient_of_an_update_is_that_of_its_equation(start: Path, tmp_path: Path, reduction: str) -> None:
    batch = samples()
    mine = learner(start, tmp_path, reduction=reduction, grad_clip=1e9)
    mine.given.rows = pack_samples(batch, mine.settings)
    mine.trainer._accumulate(mine.given)
    plain = load_checkpoint(start, torch.float32)
    tokens = [log_probs(plain, sample) for sample in batch]
    if reduction == "token":
        total = sum(len(part) for part in tokens)
        loss = -sum(sample.advantage * part.sum() for sample, part in zip(batch, tokens)) / total
    else:
        loss = -sum(sample.advantage * part.mean() for sample, part in zip(batch, tokens)) / len(batch)
    assert isinstance(loss, torch.Tensor)
    loss.backward()
    wanted = dict(plain.named_parameters())
    compared = 0
    for name, parameter in mine.model.named_parameters():
        if parameter.requires_grad:
            gradient = wanted[name].grad
            torch.testing.assert_close(parameter.grad, torch.zeros_like(parameter) if gradient is None else gradient,
                                       atol=1e-6, rtol=1e-3)  # fmt: skip
            compared += 1
    assert compared > 20


def test_what_was_rewarded_becomes_likelier(start: Path, tmp_path: Path) -> None:
    batch, mine = samples(), learner(start, tmp_path)
    before = [total_log_prob(mine.model, sample) for sample in batch]
    for _ in range(5):
        mine.update(batch)
    for sample, old in zip(batch, before):
        new = total_log_prob(mine.model, sample)
        assert (new > old) == (sample.advantage > 0)


def test_indexer_and_prediction_layer_stay(start: Path, tmp_path: Path) -> None:
    mine = learner(start, tmp_path)
    frozen = {name: p.detach().clone() for name, p in mine.model.named_parameters() if not p.requires_grad}
    assert {name.split(".")[0] for name in frozen} >= {"mtp"}
    assert any(".indexer." in name for name in frozen)
    before = mine.fingerprint()
    mine.update(samples())
    assert all(torch.equal(frozen[name], p) for name, p in mine.model.named_parameters() if name in frozen)
    assert all(value != before[name] for name, value in mine.fingerprint().items())


@pytest.mark.parametrize("changes", [{}, {"minibatches": 2, "loss": "icepop"}, {"reset_optimizer": True}])
def test_a_resumed_learner_is_the_uninterrupted_one(start: Path, tmp_path: Path, changes: dict[str, object]) -> None:
    whole = learner(start, tmp_path / "whole", **changes)
    for seed in range(4):
        whole.update(samples(seed=seed))
    first = learner(start, tmp_path / "parts", **changes)
    for seed in range(2):
        first.update(samples(seed=seed))
    first.save()
    second = learner(start, tmp_path / "parts", **changes)
    assert second.updates == 2
    for seed in range(2, 4):
        second.update(samples(seed=seed))
    mine, theirs = whole.weights(), second.weights()
    assert all(torch.equal(mine[name], theirs[name]) for name in theirs)


def test_minibatches_keep_the_old_policy(start: Path, tmp_path: Path) -> None:
    """The second step of a batch has moved away from the policy that the batch began with."""
    mine = learner(start, tmp_path, minibatches=2, loss="icepop", lr_muon=0.02)
    rows = mine._with_old_log_probs(pack_samples(samples(), mine.settings, 2))
    mask = rows.targets != IGNORE
    assert not rows.old_logprobs[mask].isnan().any()
    assert rows.old_logprobs[~mask].isnan().all()
    mine.update(samples())
    assert mine.trainer.progress.step == 2
    assert mine.updates == 1


def test_mismatch_is_measured(start: Path, tmp_path: Path) -> None:
    """Samples whose recorded log-probabilities are the model's own have none; others are far away, and masked."""
    mine = learner(start, tmp_path, loss="icepop")
    batch = samples()
    for sample in batch:
        own = iter(log_probs(mine.model, sample).tolist())
        sample.rollout_logprobs = [next(own) if trained else 0.0 for trained in sample.loss_mask]
    report = mine.update(batch)
    assert report.mismatch_kl < 1e-9
    assert report.masked_share == 0
    for sample in batch:
        sample.rollout_logprobs = [value - 3.0 * trained for value, trained in
                                   zip(sample.rollout_logprobs, sample.loss_mask)]  # fmt: skip
    assert mine.update(batch).masked_share == 1


def test_bad_batches(start: Path, tmp_path: Path) -> None:
    mine = learner(start, tmp_path, context_length=16)
    long = samples(1)[0]
    long.ids, long.loss_mask = long.ids * 9, long.loss_mask * 9
    with pytest.raises(GLM5Error, match="does not fit context_length"):
        mine.update([long])
    with pytest.raises(GLM5Error, match="positions of"):
        learner(start, tmp_path, context_length=4096)
