"""Muon for the hidden matrices, AdamW for everything else."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import AdamW, Muon, Optimizer

from pixelhdm.errors import UserError


class MuonAdamW(Optimizer):
    """One optimizer that moves hidden matrices by Muon and all other parameters by AdamW.

    Muon: M = momentum average of the gradients, W -= lr (0.2 sqrt(max(rows, columns)) UV^T +
    weight_decay W), where UV^T is what Newton-Schulz steps make of M = USV^T (arXiv:2502.16982,
    eq. 1-4). The factor gives its steps the size of AdamW's, so that one learning rate serves both.

    Args:
        params: groups as `parameter_groups` gives them; Muon takes those of role hidden.
        lr: learning rate of AdamW, and of Muon unless hidden_lr is given.
        hidden_lr: learning rate of Muon; empty takes lr.
        betas: AdamW's memories of gradient and squared gradient.
        eps: what AdamW adds to its divisor.
        weight_decay: factor of the decoupled decay; norms, biases and embeddings have none.
        momentum: Muon's memory of the gradient, used in Nesterov's way.
        ns_steps: Newton-Schulz steps of Muon.

    Raises:
        UserError: no group has the role hidden, or the weights are sharded.
    """

    def __init__(
        self,
        params: list[dict[str, Any]],
        lr: float = 1e-4,
        hidden_lr: float | None = None,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.95,
        ns_steps: int = 5,
    ):
        if not 0 <= momentum < 1:
            raise UserError(f"momentum must lie in 0 … 1 (1 excluded), got {momentum}.")
        if not 1 <= ns_steps < 100:
            raise UserError(f"ns_steps must lie in 1 … 99, got {ns_steps}. 5 are usual.")
        for name, rate in (("lr", lr), ("hidden_lr", hidden_lr)):
            if rate is not None and not rate >= 0:
                raise UserError(f"{name} must be at least 0, got {rate}.")
        groups = [dict(group) for group in params]
        if not any(is_hidden(group) for group in groups):
            raise UserError(
                "MuonAdamW must have hidden matrices to train, got a network without any that it "
                "knows. Use torch.optim.AdamW."
            )
        if any(hasattr(value, "full_tensor") for group in groups for value in group["params"]):
            raise UserError(
                "MuonAdamW must have whole matrices, got sharded ones. Use --trainer.strategy ddp, "
                "or torch.optim.AdamW."
            )
        # Both fill in their settings, so that a group is one of MuonAdamW and of theirs alike.
        self.muon = Muon(
            [group for group in groups if is_hidden(group)],
            lr=lr if hidden_lr is None else hidden_lr,
            weight_decay=weight_decay,
            momentum=momentum,
            ns_steps=ns_steps,
            adjust_lr_fn="match_rms_adamw",
        )
        self.adamw = AdamW(
            [group for group in groups if not is_hidden(group)],
            lr=lr,
            betas=betas,
            eps=eps,
            weight_decay=weight_decay,
        )
        super().__init__(groups, {})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Move every parameter that has a gradient; gives what `closure` gives."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in filter(is_hidden, self.param_groups):
            self.muon_step(group)
        # Loading a state replaces groups and state, hence the link at every step.
        self.adamw.param_groups = [group for group in self.param_groups if not is_hidden(group)]
        self.adamw.state = self.state
        self.adamw.step()
        return loss

    def muon_step(self, group: dict[str, Any]) -> None:
        """Muon on the matrices of one group, each a view of the rows of a weight that it has."""
        matrices: list[Tensor] = []
        for weight in (weight for weight in group["params"] if weight.grad is not None):
            state = self.state[weight]
            if "momentum_buffer" not in state:
                state["momentum_buffer"] = torch.zeros_like(weight)
            rows = group.get("split", len(weight))
            whole = (weight.detach(), weight.grad, state["momentum_buffer"])
            for matrix, grad, momentum in zip(*(part.split(rows) for part in whole), strict=True):
                matrix.grad = grad
                self.muon.state[matrix] = {"momentum_buffer": momentum}
                matrices.append(matrix)
        self.muon.param_groups = [group | {"params": matrices}]
        self.muon.step()
        self.muon.param_groups = []
        self.muon.state.clear()


def is_hidden(group: dict[str, Any]) -> bool:
    """Whether Muon takes the group."""
    return group.get("role") == "hidden"
