"""Which optimiser trains which parameter: Muon the matrices, AdamW embeddings, head, norms and biases (GLM-4.5
§2.4)."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from glm5.errors import GLM5Error
from glm5.train.muon import Matrix, Muon

_ADAMW_MATRICES = ("embed_tokens.weight", "lm_head.weight")


def muon_matrices(model: nn.Module, split: bool = True) -> list[Matrix]:
    """Every trainable matrix Muon takes, with the row blocks its module declares.

    Args:
        split: False leaves attention's up-projections whole (the report's "MLA" ablation). Parameters that only share
            storage, such as gate and up of an expert, are always kept apart.

    Raises:
        GLM5Error: a module declares blocks of a parameter that does not exist.
    """
    splits: dict[str, tuple[int, ...]] = {}
    for prefix, module in model.named_modules():
        declare = getattr(module, "muon_split", None)
        if declare is not None:
            splits.update((f"{prefix}.{name}", rows) for name, rows in declare().items())
    unknown = splits.keys() - dict(model.named_parameters()).keys()
    if unknown:
        raise GLM5Error(f"muon_split() names parameters that are not there: {', '.join(sorted(unknown))}")
    matrices = []
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and parameter.ndim >= 2 and not name.endswith(_ADAMW_MATRICES):
            rows = splits.get(name, ())
            if parameter.ndim == 2 and not split:
                rows = ()
            matrices.append(Matrix(name, parameter, rows))
    return matrices


@dataclass(slots=True)
class Optimizers:
    """Muon and AdamW, stepped together."""

    muon: Muon
    adamw: torch.optim.AdamW
    adamw_names: list[str]

    @classmethod
    def build(
        cls,
        model: nn.Module,
        *,
        muon_momentum: float = 0.95,
        muon_split: bool = True,
        weight_decay: float = 0.1,
        adamw_betas: tuple[float, float] = (0.9, 0.95),
        dtype: torch.dtype = torch.bfloat16,
    ) -> "Optimizers":
        """Share the trainable parameters out. Learning rates are set at every step.

        Raises:
            GLM5Error: nothing is trainable.
        """
        matrices = muon_matrices(model, muon_split)
        taken = {matrix.name for matrix in matrices}
        rest = {name: p for name, p in model.named_parameters() if p.requires_grad and name not in taken}
        if not matrices or not rest:
            raise GLM5Error("nothing to train: every parameter is frozen")
        muon = Muon(matrices, lr=0.0, momentum=muon_momentum, weight_decay=weight_decay, dtype=dtype)
        # No decay here: norms and biases must not be pulled to zero, and embeddings are rows, most of them rarely seen.
        adamw = torch.optim.AdamW(rest.values(), lr=0.0, betas=adamw_betas, weight_decay=0.0, fused=True)
        return cls(muon, adamw, list(rest))

    def step(self, lr_muon: float, lr_adamw: float) -> None:
        """Apply the gradients and drop them."""
        self.muon.param_groups[0]["lr"] = lr_muon
        self.adamw.param_groups[0]["lr"] = lr_adamw
        self.muon.step()
        self.adamw.step()
        self.muon.zero_grad(set_to_none=True)
        self.adamw.zero_grad(set_to_none=True)

    def state_tensors(self) -> dict[str, Tensor]:
        """Everything a resumed run needs, by name; loading in place into these tensors restores it."""
        tensors = {f"muon.momentum.{matrix.name}": self.muon.momentum_of(matrix) for matrix in self.muon.matrices}
        for name, parameter in zip(self.adamw_names, self.adamw.param_groups[0]["params"], strict=True):
            state = self.adamw.state[parameter]
            if not state:  # AdamW makes its state at the first step
                state["step"] = torch.zeros((), dtype=torch.float32, device=parameter.device)
                state["exp_avg"], state["exp_avg_sq"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            tensors.update((f"adamw.{key}.{name}", state[key]) for key in ("step", "exp_avg", "exp_avg_sq"))
        return tensors
