"""The representation-alignment loss."""

from typing import Literal

import torch
from einops import rearrange, reduce
from einops.layers.torch import Rearrange
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.models.encoders.resized import resized
from pixelhdm.models.encoders.teacher import Teacher
from pixelhdm.models.layers import init_linear
from pixelhdm.models.linear import Linear
from pixelhdm.models.network import Network, Prediction
from pixelhdm.training.flow import FlowSample
from pixelhdm.training.losses.loss import LossTerm

Projector, Resize = Literal["mlp", "conv"], Literal["teacher", "student"]


class RepaLoss(LossTerm):
    """Alignment with a teacher: mean of 1 - cos(project(features), teacher(x)) (arXiv:2410.06940).

    One value per patch: the network's features of a noisy image against the teacher's of the clean
    one. Patches whose tokens go around the feature block do not count; where the student's map is
    resized, they count as little as they have part in it, and "conv" sees them as they wait.

    Args:
        teacher: frozen network that gives the target features.
        weight: factor of the term in the total.
        projector: from the network's features to the teacher's: "mlp", three linear layers (REPA),
            or "conv", one 3x3 convolution, with targets normalised over the patches of each image
            (iREPA, arXiv:2512.10794), which helps with DINOv2 and not with DINOv3.
        alpha: share of the mean over patches that "conv" takes from its targets; iREPA uses 0.8 in
            pixel space.
        teacher_size: side in pixels of a square with the area that the teacher sees; empty gives
            the teacher as many patches as the network has.
        resize: which map is brought to the other's grid where the two differ: the teacher's or the
            student's (the network's).
        projector_dim: width of the hidden layers of "mlp", 2048 as REPA's; null takes the
            network's hidden_dim, as PixelGen and PixelDiT do.
    """

    name = "repa"

    def __init__(
        self,
        teacher: Teacher,
        weight: float = 0.5,
        projector: Projector = "mlp",
        alpha: float = 1.0,
        teacher_size: int | None = None,
        resize: Resize = "teacher",
        projector_dim: int | None = 2048,
    ):
        super().__init__(weight)
        check_one_of(Projector, projector=projector)
        check_one_of(Resize, resize=resize)
        teacher.check_teacher_size(teacher_size)
        if projector_dim is not None:
            check_at_least(1, projector_dim=projector_dim)
        self.teacher, self.kind, self.alpha = teacher, projector, alpha
        self.teacher_size, self.resize = teacher_size, resize
        self.projector_dim = projector_dim
        self.projector: nn.Module | None = None

    def connect(self, network: Network) -> None:
        """Build the projector for the network's width, initialised as REPA's (Xavier) or iREPA's
        (Kaiming, fan out).
        """
        self.patch_size = network.patch_size
        if self.kind == "mlp":
            width = self.projector_dim or network.hidden_dim
            self.projector = nn.Sequential(
                Linear(network.hidden_dim, width),
                nn.SiLU(),
                Linear(width, width),
                nn.SiLU(),
                Linear(width, self.teacher.dim),
            )
            init_linear(self.projector)
        else:
            convolution = nn.Conv2d(network.hidden_dim, self.teacher.dim, 3, padding=1)
            nn.init.kaiming_normal_(convolution.weight, mode="fan_out")
            nn.init.zeros_(convolution.bias)
            self.projector = nn.Sequential(
                Rearrange("b h w d -> b d h w"), convolution, Rearrange("b d h w -> b h w d")
            )

    def start(self, device: torch.device) -> None:
        """Load the teacher, so that missing files end the run at once; nothing once stopped.

        Raises:
            UserError: the teacher cannot be loaded.
        """
        if not self.active:
            return
        try:
            self.teacher.load(device)
        except UserError as error:
            raise UserError(
                f"{error} To train without it: --model.loss.repa=null in a new run, "
                "--repa_early_stop.step=0 with a checkpoint that holds a projector."
            ) from error

    def stop(self) -> None:
        super().stop()
        self.teacher.free()

    def forward(self, prediction: Prediction, sample: FlowSample) -> Float[Tensor, "B"]:
        """The term; the projector runs in the precision around it, all else in float32.

        Raises:
            UserError: the teacher cannot be loaded, or the network's features are not one per
                patch.
        """
        h, w = (side // self.patch_size for side in sample.x.shape[1:3])
        if prediction.features.shape[1] != h * w:
            raise UserError(
                f"features of the network must be one per patch, {h}x{w}, got "
                f"{prediction.features.shape[1]}. Leave out all but image tokens."
            )
        grids = [(h, w), self.teacher_grid(*sample.x.shape[1:3])]
        if self.kind == "conv" and (1, 1) in grids:
            raise UserError(
                "projector=conv must have more than one patch an image to normalise over, of the "
                "network and of the teacher, got {}x{} and {}x{} of ".format(*grids[0], *grids[1])
                + "{}x{} pixels. Use mlp, or a larger image or teacher_size.".format(
                    *sample.x.shape[1:3]
                )
            )
        features = rearrange(prediction.features, "b (h w) d -> b h w d", h=h, w=w)
        target = self.target(sample.x)
        if self.resize == "student":
            features = resized(features.float(), *target.shape[1:3], "bilinear")
        else:
            target = resized(target, h, w, "bilinear")
        if self.kind == "conv":
            target = spatially_normalized(target, self.alpha)
        similarity = F.cosine_similarity(self.projector(features).float(), target, dim=-1)
        if prediction.kept is None:
            return 1 - reduce(similarity, "b h w -> b", "mean")
        kept = rearrange(prediction.kept, "b (h w) -> b h w 1", h=h, w=w).float()
        share = rearrange(resized(kept, *similarity.shape[1:], "bilinear"), "b h w 1 -> b h w")
        return 1 - (share * similarity).sum(dim=(1, 2)) / share.sum(dim=(1, 2))

    def target(self, image: Float[Tensor, "B H W 3"]) -> Float[Tensor, "B h w D"]:
        """The teacher's features on its own grid."""
        self.start(image.device)
        return self.teacher(self.teacher.fitted(image, self.patch_size, self.teacher_size))

    def teacher_grid(self, height: int, width: int) -> tuple[int, int]:
        """Rows and columns of the teacher's patches on an image of this size."""
        return self.teacher.grid(height, width, self.patch_size, self.teacher_size)


def spatially_normalized(
    tokens: Float[Tensor, "B h w D"], alpha: float
) -> Float[Tensor, "B h w D"]:
    """(y - alpha mean) / (std + 1e-6), mean and unbiased std over the patches of each image and
    channel (iREPA, arXiv:2512.10794).
    """
    std, mean = torch.std_mean(tokens, dim=(1, 2), keepdim=True)
    return (tokens - alpha * mean) / (std + 1e-6)
