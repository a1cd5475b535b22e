"""The weaker model of autoguidance."""

import copy
from pathlib import Path

from pixelhdm.checkpoints import Weights, choose_weights, raw_in, read_checkpoint, trained_file
from pixelhdm.inference.exported import is_exported, load_model
from pixelhdm.inference.model import Model
from pixelhdm.initial_weights import fitting


class Weaker:
    """A weaker model, read when it is first needed; not a part of the module, as a teacher is not.

    Args:
        source: checkpoint, run folder, or folder of an exported model.
        weights: which weights of a checkpoint.
    """

    def __init__(self, source: str, weights: Weights):
        self.source, self.weights = source, weights
        self.model: Model | None = None

    def model_like(self, model: Model) -> Model:
        """It, on the device of `model`; a checkpoint's has the same network.

        Raises:
            UserError: the files are missing or do not fit.
        """
        if self.model is None:
            self.model = self.read(model)
        for part in self.model[:2]:
            part.to(model.device)
        return self.model

    def read(self, model: Model) -> Model:
        """Read it."""
        if is_exported(self.source):
            weak = load_model(Path(self.source))
        else:
            file = str(trained_file(self.source))
            weak = Model(*copy.deepcopy(model[:2]), model.flow)
            state = read_checkpoint(file)["state_dict"]
            chosen = choose_weights(state, self.weights, file, "--model.guidance.weak_weights raw")
            parts = {"network": weak.network, "conditioner": weak.conditioner}
            own = {
                f"{name}.{key}": value
                for name, part in parts.items()
                for key, value in part.state_dict().items()
            }
            kept = fitting(own, raw_in(chosen), file)
            for name, part in parts.items():
                start = f"{name}."
                part.load_state_dict(
                    {k.removeprefix(start): v for k, v in kept.items() if k.startswith(start)}
                )
        for part in weak[:2]:
            part.eval().requires_grad_(False)
        return weak
