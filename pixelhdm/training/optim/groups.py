"""Which trained parameters are optimised alike."""

from typing import Any

from torch import nn

from pixelhdm.models.attention import Attention
from pixelhdm.models.blocks import TokenCompaction
from pixelhdm.models.layers import GeluMLP, SwiGLU

# A new attention, feed-forward or compaction layer is to be added here; its matrices are trained
# as "other" until then.
HIDDEN = (Attention, SwiGLU, GeluMLP, TokenCompaction)
DECAYED = (nn.Linear, nn.Conv2d)
ORDER = ("hidden", "other", "no_decay")

Role = tuple[str, tuple[int, ...] | None]


def parameter_groups(module: nn.Module) -> list[dict[str, Any]]:
    """All trained parameters of a module, each once, as an optimizer's parameter groups.

    The groups differ by `role`:
    hidden: the matrices of attention, feed-forward and compaction layers, which Muon takes
    (arXiv:2502.16982, section 2); where one weight holds several matrices above each other, `split`
    gives their numbers of rows.
    other: the remaining weights of linear layers: embeddings of patches, pixels and time,
    modulation, output, projections.
    no_decay: norms, biases, embedding tables and single learned tensors, with weight_decay 0.

    The order depends on the module alone. Groups without a parameter are left out.
    """
    groups: dict[Role, list[nn.Parameter]] = {}
    for parameter, role in parameter_roles(module).items():
        groups.setdefault(role, []).append(parameter)
    return [
        {"params": groups[name, split], "role": name}
        | ({"split": split} if split is not None else {})
        | ({"weight_decay": 0.0} if name == "no_decay" else {})
        for name, split in sorted(groups, key=lambda role: ORDER.index(role[0]))
    ]


def parameter_roles(module: nn.Module) -> dict[nn.Parameter, Role]:
    """Role and split of every trained parameter; a shared one has that of its first owner."""
    hidden, roles = hidden_matrices(module), {}
    for owner in module.modules():
        for name, parameter in owner.named_parameters(recurse=False):
            if parameter in hidden:
                role = ("hidden", hidden[parameter])
            elif isinstance(owner, DECAYED) and name == "weight":
                role = ("other", None)
            else:
                role = ("no_decay", None)
            if parameter.requires_grad:
                roles.setdefault(parameter, role)
    return roles


def hidden_matrices(module: nn.Module) -> dict[nn.Parameter, tuple[int, ...] | None]:
    """The weights of all Linears inside hidden layers, with the rows of the matrices in each.

    Queries, keys and values are matrices of their own: orthogonalised as one, the largest would
    decide for all.
    """
    hidden = {}
    for layer in module.modules():
        if isinstance(layer, HIDDEN):
            linears = (part for part in layer.modules() if isinstance(part, nn.Linear))
            hidden |= {linear.weight: None for linear in linears if linear.weight not in hidden}
        if isinstance(layer, Attention):
            hidden |= layer.stacked
    return hidden
