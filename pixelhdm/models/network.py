"""What a network is: the common base and its result."""

from abc import ABC, abstractmethod
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from pixelhdm.errors import UserError, check_at_least, check_one_of
from pixelhdm.models.attention import Attention
from pixelhdm.models.attention_kernels import AttentionKernel
from pixelhdm.models.conditioners.context import Context
from pixelhdm.models.offload import Offload
from pixelhdm.models.routing import Detour, Route, TokenRouting
from pixelhdm.models.selective import run_selectively
from pixelhdm.models.varying import vary

GradCheckpoint = Literal["none", "pixel", "selective", "all"]


class Prediction(NamedTuple):
    """What a network gives.

    Attributes:
        output: velocity or clean image, whichever the flow asks it to predict.
        features: image tokens after the network's feature block, for representation losses.
        kept: which of them went through that block, where a route leaves out some.
    """

    output: Float[Tensor, "B H W 3"]
    features: Float[Tensor, "B L D"]
    kept: Bool[Tensor, "B L"] | None = None


class Network(nn.Module, ABC):
    """Base of all networks: maps a noisy image, its time and its context to a Prediction.

    Args:
        hidden_dim: width of the context it takes.
        patch_size: the image's sides must be multiples of it.
        grad_checkpoint: blocks whose activations are computed again in the backward pass instead
            of kept: "none", "pixel" (the pixel path), "selective" (of all blocks, all but matrix
            products and attention) or "all".

    Attributes:
        activation_offload: whether what is kept of the blocks moves to CPU memory until the
            backward pass.
        attention_kernel: which kernel computes attention, see choose_attention.
    """

    def __init__(self, hidden_dim: int, patch_size: int, grad_checkpoint: GradCheckpoint = "none"):
        super().__init__()
        check_at_least(1, hidden_dim=hidden_dim, patch_size=patch_size)
        check_one_of(GradCheckpoint, grad_checkpoint=grad_checkpoint)
        self.hidden_dim, self.patch_size = hidden_dim, patch_size
        self.grad_checkpoint = grad_checkpoint
        self.attention_kernel: AttentionKernel = "auto"
        self.activation_offload, self.offload = False, Offload()
        self.routing: TokenRouting | None = None
        self.routed_blocks = range(0)

    @abstractmethod
    def forward(
        self, z: Float[Tensor, "B H W 3"], t: Float[Tensor, "B"], context: Context
    ) -> Prediction:
        """Predict from a noisy image.

        Args:
            z: noisy image; height and width are multiples of patch_size.
            t: time of each sample in [0, 1]; 1 is clean.
            context: the embedded condition, of width hidden_dim.

        Raises:
            UserError: the image cannot be cut into whole patches.
        """

    @property
    def all_blocks(self) -> list[nn.Module]:
        """The blocks, in the order of their registration: what is compiled, sharded and computed
        again one by one.
        """
        lists = (part for part in self.modules() if isinstance(part, nn.ModuleList))
        return [block for blocks in lists for block in blocks]

    @property
    def last_layer(self) -> nn.Linear:
        """The linear layer whose output is the image."""
        raise UserError(
            f"network must tell its last layer to balance losses, got {type(self).__name__}, which "
            "does not. Give it a property last_layer, or leave the balance out."
        )

    def run_block(self, block: nn.Module, *inputs: Any, again: bool) -> Any:
        """Run a block; with `again` the backward pass computes it again, and no activation inside
        it is kept. Under "selective" what is costly is kept of every block.

        What a compiled block does can't be seen from outside, and the compiler by itself computes
        cheap work again: under "selective" it runs as it is, or with `again`, in the pixel path,
        whole again.
        """
        if block._compiled_call_impl is not None:
            vary(inputs)
        if not torch.is_grad_enabled():
            return block(*inputs)
        call = partial(block, *inputs)
        if self.grad_checkpoint == "selective" and block._compiled_call_impl is None:
            call = partial(run_selectively, block, *inputs)
        elif again:
            call = partial(checkpoint, block, *inputs, use_reentrant=False)
        return self.offload.run(block, call) if self.activation_offload else call()

    def choose_attention(self, kernel: AttentionKernel) -> None:
        """Choose what computes attention in all layers.

        Args:
            kernel: "auto": flash-attn where it is installed and can, else PyTorch's kernels;
                "sdpa": F.scaled_dot_product_attention always, padded batches with a mask;
                "flash": flash-attn, or an error at the first attention.
        """
        check_one_of(AttentionKernel, attention=kernel)
        self.attention_kernel = kernel
        for part in self.modules():
            if isinstance(part, Attention):
                part.kernel = kernel

    def take_routing(self, routing: TokenRouting | None, depth: int) -> None:
        """Take a way around some of the `depth` blocks on patches, or none."""
        self.routing = routing
        self.routed_blocks = range(0) if routing is None else routing.blocks(depth)

    def num_kept(self, height: int, width: int) -> int | None:
        """How many tokens of an image of this size a route keeps; None where it has none."""
        if self.routing is None:
            return None
        return self.routing.num_kept(height * width // self.patch_size**2)

    def detour(self, context: Context, num_tokens: int) -> Detour:
        """The way of images of `num_tokens` tokens through the blocks."""
        return Detour(context.route, self.routed_blocks, num_tokens)

    def went_through(
        self, block: int, route: Route | None, num_tokens: int
    ) -> Bool[Tensor, "B L"] | None:
        """Which of the images' tokens went through a block; None where all did."""
        if route is None or block not in self.routed_blocks:
            return None
        return route.is_kept(num_tokens)

    def check_size(self, height: int, width: int) -> None:
        """Raise unless an image of this size can be cut into whole patches."""
        p = self.patch_size
        if height % p or width % p or min(height, width) < 1:
            near = [max(p, round(side / p) * p) for side in (height, width)]
            raise UserError(
                f"image height and width must be multiples of patch_size={p}, "
                f"got {height}x{width}. Use {near[0]}x{near[1]}."
            )
