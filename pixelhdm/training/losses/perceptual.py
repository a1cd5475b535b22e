"""The perceptual losses: how different the predicted clean image looks."""

from abc import abstractmethod

import torch
import torch.distributed
from einops import reduce
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from pixelhdm.errors import UserError
from pixelhdm.models.encoders.frozen import Frozen
from pixelhdm.models.encoders.lpips import Lpips
from pixelhdm.models.encoders.resized import resized
from pixelhdm.models.encoders.teacher import Teacher
from pixelhdm.models.network import Network, Prediction
from pixelhdm.processes import are_several
from pixelhdm.training.flow import FlowSample
from pixelhdm.training.losses.loss import LossTerm

PATCH_SIZE = 16  # of the networks that PixelGen compares at their own size


class PerceptualLoss(LossTerm):
    """Base of the terms that compare the predicted clean image x̂ with x by a frozen network.

    Near the noise such terms cost variety, so only images with t ≥ t_min count: g = 1, else 0, as
    for empty slots (PixelGen's noise gating). In training each has the value g L / mean(g), with
    the mean over all processes' batches by the images' weights w, so that their weighted mean is
    sum(w g L) / sum(w g), or 0 without any. In validation it has g L.

    Args:
        frozen: the network.
        weight: factor of the term in the total.
        t_min: least time that counts, 0 … 1; 0 lets all count.
    """

    def __init__(self, frozen: Frozen, weight: float, t_min: float):
        super().__init__(weight)
        if not 0 <= t_min <= 1:
            raise UserError(f"t_min must lie in 0 … 1, got {t_min}.")
        self.frozen, self.t_min = frozen, t_min

    def connect(self, network: Network) -> None:
        self.patch_size = network.patch_size

    def start(self, device: torch.device) -> None:
        """Load the frozen network, so that missing files end the run at once; nothing once stopped.

        Raises:
            UserError: it cannot be loaded.
        """
        if not self.active:
            return
        try:
            self.frozen.load(device)
        except UserError as error:
            raise UserError(
                f"{error} To train without it: leave {type(self).__name__} out of model.loss.extra."
            ) from error

    def stop(self) -> None:
        super().stop()
        self.frozen.free()

    @abstractmethod
    def distance(
        self, clean: Float[Tensor, "n H W 3"], x: Float[Tensor, "n H W 3"]
    ) -> Float[Tensor, "n"]:
        """How far each predicted clean image is from its true one; gradients flow to the former."""

    def forward(self, prediction: Prediction, sample: FlowSample) -> Float[Tensor, "B"]:
        """The term; images that do not count pass through no network.

        Raises:
            UserError: the frozen network cannot be loaded.
        """
        self.start(sample.x.device)
        velocity = prediction.output.float()
        counted = (sample.t >= self.t_min) & (sample.weight > 0)
        # Zeros in the graph of the prediction: DDP waits for every parameter's gradient.
        values = reduce(velocity[:, :0], "b h w c -> b", "sum")
        if counted.any():
            with torch.autocast(velocity.device.type, enabled=False):
                clean = sample.clean(velocity)[counted]
                distance = self.distance(clean, sample.x[counted].float())
            values = values.masked_scatter(counted, distance)
        if self.training and self.t_min > 0:
            values = values / mean_counted(counted, sample.weight)
        return values


class LpipsLoss(PerceptualLoss):
    """LPIPS between the predicted clean image and the true one (arXiv:1801.03924; PixelGen).

    Images of a network with other patches than 16 pixels are resized so that they would be 16.

    Args:
        source: file with torchvision's weights of VGG16, .pth or .safetensors; empty downloads
            them.
        weight: factor of the term in the total.
        t_min: least time that counts, 0 … 1; 0 lets all count.
    """

    name = "lpips"

    def __init__(self, source: str | None = None, weight: float = 0.1, t_min: float = 0.3):
        lpips = Lpips(source)
        super().__init__(lpips, weight, t_min)
        self.lpips = lpips

    def distance(
        self, clean: Float[Tensor, "n H W 3"], x: Float[Tensor, "n H W 3"]
    ) -> Float[Tensor, "n"]:
        height, width = (side // self.patch_size * PATCH_SIZE for side in x.shape[1:3])
        return self.lpips(*(resized(image, height, width, "bilinear") for image in (clean, x)))


class DinoPerceptualLoss(PerceptualLoss):
    """1 - cos(teacher(x̂), teacher(x)), the mean over patches (P-DINO of PixelGen).

    Gradients flow through the teacher to the predicted clean image.

    Args:
        teacher: frozen network that gives the features; DINOv2 in PixelGen.
        weight: factor of the term in the total.
        t_min: least time that counts, 0 … 1; 0 lets all count.
        teacher_size: side in pixels of a square with the area that the teacher sees; empty gives
            the teacher as many patches as the network has.
    """

    name = "p_dino"

    def __init__(
        self,
        teacher: Teacher,
        weight: float = 0.01,
        t_min: float = 0.3,
        teacher_size: int | None = None,
    ):
        super().__init__(teacher, weight, t_min)
        teacher.check_teacher_size(teacher_size)
        self.teacher, self.teacher_size = teacher, teacher_size

    def distance(
        self, clean: Float[Tensor, "n H W 3"], x: Float[Tensor, "n H W 3"]
    ) -> Float[Tensor, "n"]:
        seen, target = (
            self.teacher.fitted(image, self.patch_size, self.teacher_size) for image in (clean, x)
        )
        similarity = F.cosine_similarity(self.teacher.features(seen), self.teacher(target), dim=-1)
        return 1 - reduce(similarity, "b h w -> b", "mean")


def mean_counted(counted: Bool[Tensor, "B"], weight: Float[Tensor, "B"]) -> Float[Tensor, ""]:
    """Share of the weight of all processes' images that counts; 1 without any. All must call it
    together.
    """
    totals = torch.stack([(weight * counted).sum(), weight.sum()]).float()
    if are_several():
        torch.distributed.all_reduce(totals)
    return torch.where(totals[0] > 0, totals[0] / totals[1], 1.0)
