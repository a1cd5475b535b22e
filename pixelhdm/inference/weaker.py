"""The weaker model of autoguidance."""

import copy
from collections import OrderedDict
from pathlib import Path

from torch import nn

from pixelhdm.checkpoints import Weights, choose_weights, read_checkpoint, trained_file
from pixelhdm.inference.exports.exported import filled, is_exported, load_model
from pixelhdm.inference.model import Model


class Weaker:
    """A weaker model, read when it is first needed; not a part of the module, as a teacher is not.

    Args:
        source: checkpoint, run folder, or folder of an exported model.
        weights: which weights of a checkpoint.

    Raises:
        UserError: there is none.
    """

    def __init__(self, source: str, weights: Weights):
        self.source, self.weights = source, weights
        if not is_exported(source):
            self.source = str(trained_file(source, "guidance.weak"))
        self.model: Model | None = None

    def model_like(self, model: Model) -> Model:
        """It, on the device of `model`; a checkpoint's has the same network.

        Raises:
            UserError: the files are torn or do not fit.
        """
        if self.model is None:
            self.model = self.read(model)
        for part in self.model[:2]:
            part.to(model.device)
        return self.model

    def read(self, model: Model) -> Model:
        """Read it."""
        if is_exported(self.source):
            return load_model(Path(self.source))
        state = read_checkpoint(self.source)["state_dict"]
        remedy = "--model.guidance.weak_weights raw"
        chosen = choose_weights(state, self.weights, self.source, remedy)
        parts = (without_hooks(part) for part in model[:2])
        return filled(Model(*parts, model.flow), chosen, self.source)


def without_hooks(module: nn.Module) -> nn.Module:
    """A copy that runs no hooks of others, which may hold a whole trainer."""
    hooks = (h for part in module.modules() for h in (part._forward_hooks, part._forward_pre_hooks))
    return copy.deepcopy(module, {id(own): OrderedDict() for own in hooks})
