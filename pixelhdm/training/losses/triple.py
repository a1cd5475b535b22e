"""The whole loss: three named terms and any others."""

import torch
from jaxtyping import Float
from torch import Tensor, nn

from pixelhdm.errors import UserError
from pixelhdm.models.network import Network, Prediction
from pixelhdm.training.flow import FlowSample
from pixelhdm.training.losses.loss import LossTerm

LOGGED = {  # the other numbers of a step
    *("total", "grad_norm", "skipped_steps", "overflows"),
    *("clip_threshold", "grad_z", "clipped_share", "perceptual_factor"),
    *("lr", "lr_hidden", "lr_other", "lr_no_decay"),
}


class TripleLoss(nn.Module):
    """L = sum over the terms of weight times term: velocity, frequency, repa and any extra ones.

    Args:
        velocity: flow-matching term; null switches it off, as with every term.
        frequency: term on the error's frequencies.
        repa: term that aligns features with those of a frozen teacher.
        extra: further terms.
    """

    def __init__(
        self,
        velocity: LossTerm | None = None,
        frequency: LossTerm | None = None,
        repa: LossTerm | None = None,
        extra: list[LossTerm] | None = None,
    ):
        super().__init__()
        given = {"velocity": velocity, "frequency": frequency, "repa": repa}
        terms = {key: term for key, term in given.items() if term is not None}
        self.terms = nn.ModuleDict()
        for term in extra or []:
            name = getattr(term, "name", "")
            is_taken = name in {*terms, *LOGGED} or hasattr(self.terms, name)
            if is_taken or not name.isidentifier():
                raise UserError(
                    "every loss must have a name of its own, one word that is neither logged for "
                    f"another number nor an attribute of torch.nn.ModuleDict, got {name!r} of "
                    f"{type(term).__name__}."
                )
            terms[name] = term
        if terms.keys() <= {"repa"}:
            raise UserError(
                "loss must have a term on the network's output, got "
                f"{'repa alone' if terms else 'none'}. Set model.loss.velocity."
            )
        self.terms.update(terms)

    def connect(self, network: Network) -> None:
        """Let every term build what depends on the network."""
        for term in self.terms.values():
            term.connect(network)

    def start(self, device: torch.device) -> None:
        """Let every active term load what it needs."""
        for term in self.terms.values():
            if term.active:
                term.start(device)

    def forward(self, prediction: Prediction, sample: FlowSample) -> dict[str, Float[Tensor, "B"]]:
        """Every active term by name, without its weight, and their weighted sum `total`; one number
        per image.

        The parameters of a stopped term stay in the graph with a zero gradient: DDP waits for every
        parameter's.
        """
        values, total = {}, torch.zeros(len(sample.t), device=sample.x.device)
        for name, term in self.terms.items():
            if term.active:
                values[name] = term(prediction, sample)
                if values[name].shape != sample.t.shape:
                    raise UserError(
                        f"loss {name} must be one number per image, of shape "
                        f"{tuple(sample.t.shape)}, got {tuple(values[name].shape)}. Average over "
                        "all but the first axis."
                    )
                total = total + term.weight * values[name]
            else:
                total = total + sum(value.flatten()[:0].sum() for value in term.parameters())
        return values | {"total": total}
