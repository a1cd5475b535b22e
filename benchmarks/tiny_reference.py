"""The four tiny models of the public MNIST/CIFAR framework and their training, for comparison in
benchmarks/tiny.py: written from a description, in plain PyTorch, with the framework's habits.

Its habits: modulation without "1 +", dropout of 0.1, a 3x3 convolution at full resolution that
makes the pixels' condition, and times t = sigmoid(-0.8 + 0.8 u) of uniform u, which all lie in 0.31
… 0.5 (a normal u was meant). Parameters and FLOP agree with the published ones. Its notation:
images are B C H W here.
"""

import copy
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

WIDTH, DEPTH, HEADS, PATCH, RATIO, DROPOUT = 128, 6, 4, 4, 4, 0.1
SIZE = 32  # of CIFAR-10's images
PIXEL, PIXEL_DEPTH, COMPACT, NUM_REGISTERS = 16, 2, 256, 4
NUM_CLASSES, NULL_PROB, T_EPS = 10, 0.1, 0.05
TIME_MEAN, TIME_STD = -0.8, 0.8
WEIGHT_DECAY = 0.01


class Kind(NamedTuple):
    """Which of the four models.

    Attributes:
        has_pixels: whether it has a path of pixels: pixeldit, mmpixeldit.
        has_registers: whether classes are registers in the sequence: mmdit, mmpixeldit.
        normed_patches: whether queries and keys of the patch path are normed: the pixel models.
        normed_pixels: the same in the path of pixels: mmpixeldit.
        num_parameters: the published number for CIFAR-10.
    """

    has_pixels: bool
    has_registers: bool
    normed_patches: bool
    normed_pixels: bool
    num_parameters: int


KINDS = {
    "dit": Kind(False, False, False, False, 1_967_152),
    "mmdit": Kind(False, True, False, False, 1_971_888),
    "pixeldit": Kind(True, False, True, False, 2_650_851),
    "mmpixeldit": Kind(True, True, True, True, 2_655_715),
}


def turn(x: Tensor, side: int) -> Tensor:
    """Rotary positions of the first side² tokens of B heads S d: the first half of the pairs by
    the row, the second by the column.
    """
    quarter = x.shape[-1] // 4
    frequency = 10_000.0 ** -(torch.arange(quarter, device=x.device) / quarter)
    place = torch.arange(side, device=x.device).float()
    rows = (place[:, None, None] * frequency).expand(side, side, quarter)
    columns = (place[None, :, None] * frequency).expand(side, side, quarter)
    angle = torch.cat([rows, columns], dim=-1).flatten(0, 1)
    image, rest = x[:, :, : side**2], x[:, :, side**2 :]
    a, b = image.unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angle.cos(), angle.sin()
    turned = torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
    return torch.cat([turned, rest], dim=2)


class Attend(nn.Module):
    """Self-attention of `inner` tokens' width, with rotary positions."""

    def __init__(self, inner: int, width: int, normed: bool, out: int):
        super().__init__()
        self.qkv = nn.Linear(inner, 3 * width, bias=False)
        self.out = nn.Linear(width, out)
        head = width // HEADS
        self.q_norm = nn.RMSNorm(head) if normed else nn.Identity()
        self.k_norm = nn.RMSNorm(head) if normed else nn.Identity()

    def forward(self, x: Tensor, side: int) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, -1)).permute(2, 0, 3, 1, 4)
        q, k = turn(self.q_norm(q), side), turn(self.k_norm(k), side)
        values = F.scaled_dot_product_attention(q, k, v)
        return self.out(values.transpose(1, 2).flatten(2))


def feed_forward(width: int) -> nn.Sequential:
    """Linear, SiLU, Linear."""
    inner = RATIO * width
    return nn.Sequential(nn.Linear(width, inner), nn.SiLU(), nn.Linear(inner, width))


def modulation(width: int, out: int) -> nn.Sequential:
    """SiLU and a Linear that starts at zero."""
    linear = nn.Linear(width, out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return nn.Sequential(nn.SiLU(), linear)


class Block(nn.Module):
    """x += gate f(RMSNorm(x) scale + shift), for attention and feed-forward layer."""

    def __init__(self, width: int, condition: int, attention: nn.Module):
        super().__init__()
        self.norm1, self.norm2 = nn.RMSNorm(width), nn.RMSNorm(width)
        self.attention, self.mlp = attention, feed_forward(width)
        self.modulation = modulation(condition, 6 * width)
        self.dropout = nn.Dropout(DROPOUT)

    def forward(self, x: Tensor, c: Tensor, side: int) -> Tensor:
        shift1, scale1, gate1, shift2, scale2, gate2 = self.modulation(c).chunk(6, dim=-1)
        x = x + gate1 * self.dropout(self.attention(self.norm1(x) * scale1 + shift1, side))
        return x + gate2 * self.dropout(self.mlp(self.norm2(x) * scale2 + shift2))


class Compaction(nn.Module):
    """Attention of pixels B (H W) 16 by a convolution down to patches and one back up."""

    def __init__(self, normed: bool):
        super().__init__()
        self.down = nn.Conv2d(PIXEL, COMPACT, PATCH, PATCH)
        self.attention = Attend(COMPACT, WIDTH, normed, COMPACT)
        self.up = nn.ConvTranspose2d(COMPACT, PIXEL, PATCH, PATCH)

    def forward(self, x: Tensor, side: int) -> Tensor:
        image = x.transpose(1, 2).unflatten(2, (side * PATCH, side * PATCH))
        patches = self.down(image).flatten(2).transpose(1, 2)
        patches = self.attention(patches, side).transpose(1, 2).unflatten(2, (side, side))
        return self.up(patches).flatten(2).transpose(1, 2)


class PixelPart(nn.Module):
    """The path of pixels, conditioned by the resized map of tokens."""

    def __init__(self, size: int, normed: bool):
        super().__init__()
        self.embedding = nn.Conv2d(3, PIXEL, 1)
        self.positions = nn.Parameter(torch.randn(size**2, PIXEL))
        self.condition = nn.Conv2d(WIDTH, WIDTH, 3, padding=1)
        self.blocks = nn.ModuleList(
            Block(PIXEL, WIDTH, Compaction(normed)) for _ in range(PIXEL_DEPTH)
        )
        self.norm, self.modulation = nn.RMSNorm(PIXEL), modulation(WIDTH, 2 * PIXEL)
        self.final = zero_linear(PIXEL, 3)

    def forward(self, z: Tensor, tokens: Tensor, side: int) -> Tensor:
        size = side * PATCH
        x = self.embedding(z).flatten(2).transpose(1, 2) + self.positions
        semantic = tokens.transpose(1, 2).unflatten(2, (side, side))
        semantic = F.interpolate(semantic, (size, size), mode="bilinear", align_corners=False)
        c = self.condition(semantic).flatten(2).transpose(1, 2)
        for block in self.blocks:
            x = block(x, c, side)
        scale, shift = self.modulation(c).chunk(2, dim=-1)
        x = self.final(self.norm(x) * (1 + scale) + shift)
        return x.transpose(1, 2).unflatten(2, (size, size))


def zero_linear(width: int, out: int) -> nn.Linear:
    """A Linear that starts at zero."""
    linear = nn.Linear(width, out)
    nn.init.zeros_(linear.weight)
    nn.init.zeros_(linear.bias)
    return linear


class Reference(nn.Module):
    """One of the framework's tiny models; predicts the clean image."""

    def __init__(self, name: str, size: int = SIZE):
        super().__init__()
        self.kind, self.side = KINDS[name], size // PATCH
        self.embedding = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.positions = nn.Parameter(torch.randn(self.side**2, WIDTH))
        self.time = nn.Sequential(nn.Linear(WIDTH, 512), nn.SiLU(), nn.Linear(512, WIDTH))
        if self.kind.has_registers:
            self.registers = nn.Embedding(NUM_CLASSES + 1, NUM_REGISTERS * WIDTH)
            self.register_positions = nn.Parameter(torch.zeros(NUM_REGISTERS, WIDTH))
        else:
            self.classes = nn.Embedding(NUM_CLASSES + 1, WIDTH)
        normed = self.kind.normed_patches
        self.blocks = nn.ModuleList(
            Block(WIDTH, WIDTH, Attend(WIDTH, WIDTH, normed, WIDTH)) for _ in range(DEPTH)
        )
        if self.kind.has_pixels:
            self.pixels = PixelPart(size, self.kind.normed_pixels)
        else:
            self.norm, self.modulation = nn.RMSNorm(WIDTH), modulation(WIDTH, 2 * WIDTH)
            self.final = zero_linear(WIDTH, 3 * PATCH**2)

    def forward(self, z: Tensor, t: Tensor, label: Tensor) -> Tensor:
        half = WIDTH // 2
        place = torch.arange(half, device=t.device)
        angle = t[:, None] * 10_000.0 ** -(place / (half - 1))
        c = self.time(torch.cat([angle.sin(), angle.cos()], dim=-1))
        x = self.embedding(z).flatten(2).transpose(1, 2) + self.positions
        if self.kind.has_registers:
            registers = self.registers(label).unflatten(-1, (NUM_REGISTERS, WIDTH))
            c = c + registers.mean(dim=1)
            x = torch.cat([x, registers + self.register_positions], dim=1)
        else:
            c = c + self.classes(label)
        for block in self.blocks:
            x = block(x, c[:, None], self.side)
        x = x[:, : self.side**2]
        return self.pixels(z, x, self.side) if self.kind.has_pixels else self.unpatched(x, c)

    def unpatched(self, x: Tensor, c: Tensor) -> Tensor:
        shift, scale = self.modulation(c[:, None]).chunk(2, dim=-1)
        x = self.final(self.norm(x) * (1 + scale) + shift)
        return F.fold(x.transpose(1, 2), self.side * PATCH, PATCH, stride=PATCH)


def truncated_time(num: int, generator: torch.Generator) -> Tensor:
    """Its training times: uniform draws where normal ones were meant."""
    return torch.sigmoid(TIME_MEAN + TIME_STD * torch.rand(num, generator=generator))


def check_size(model: Reference) -> None:
    """Raise unless a model for CIFAR-10 has the published number of parameters."""
    own = sum(p.numel() for p in model.parameters())
    if own != model.kind.num_parameters:
        raise AssertionError(f"{own} parameters, not {model.kind.num_parameters}")


class ReferenceTraining:
    """Its training: AdamW, constant learning rate, no clipping; with the average of our EMA
    callback, which is kinder to short runs than its own.
    """

    def __init__(self, name: str, lr: float, seed: int, ema_decay: float):
        torch.manual_seed(seed)
        self.model = Reference(name)
        check_size(self.model)
        self.ema = copy.deepcopy(self.model).requires_grad_(False).eval()
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), lr=lr, weight_decay=WEIGHT_DECAY, fused=True
        )
        self.generator = torch.Generator().manual_seed(seed)
        self.steps, self.decay = 0, ema_decay

    def step(self, image: Tensor, label: Tensor) -> None:
        """Train on images B H W 3 in [-1, 1]."""
        x, num = image.permute(0, 3, 1, 2).contiguous(), len(image)
        noise = torch.randn(x.shape, generator=self.generator)
        t = truncated_time(num, self.generator)
        is_null = torch.rand(num, generator=self.generator) < NULL_PROB
        at = t[:, None, None, None]
        z = at * x + (1 - at) * noise
        clean = self.model(z, t, torch.where(is_null, NUM_CLASSES, label))
        loss = ((clean - x) / (1 - at).clamp(min=T_EPS)).square().mean()
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        self.steps += 1
        decay = min(self.decay, (1 + self.steps) / (10 + self.steps))
        torch._foreach_lerp_(
            list(self.ema.parameters()), [p.detach() for p in self.model.parameters()], 1 - decay
        )

    @torch.no_grad()
    def clean(self, z: Tensor, t: Tensor, label: Tensor, weights: str) -> Tensor:
        """Its clean images of noisy images B H W 3."""
        model = self.ema if weights == "ema" else self.model.eval()
        image = model(z.permute(0, 3, 1, 2).contiguous(), t, label).permute(0, 2, 3, 1)
        self.model.train()
        return image
