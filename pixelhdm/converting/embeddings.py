"""Where the tensors of what takes times, texts and patches in go."""

from einops import rearrange
from torch import Tensor

from pixelhdm.converting.moves import Move, layer, weight


def time_moves(dim: int) -> list[Move]:
    """Those of the time's embedding, the same in all networks."""
    inner = layer("t_embedder.mlp.0", "network.time_embedding.mlp.0", dim, 256)
    return inner + layer("t_embedder.mlp.2", "network.time_embedding.mlp.2", dim, dim)


def text_moves(dim: int, text_width: int, length: int) -> list[Move]:
    """Those of a text's projection, norm and positions."""
    moves = layer("y_embedder.proj", "conditioner.projection", dim, text_width)
    moves += weight("y_embedder.norm", "conditioner.norm", dim)
    position = Move(
        "y_pos_embedding",
        "conditioner.position",
        (1, length, dim),
        lambda value: rearrange(value, "1 t d -> t d"),
    )
    return [*moves, position]


def embedding_moves(dim: int, patch: int, bottleneck: int | None) -> list[Move]:
    """Those of the patch embedding, which is published as convolutions."""

    def flat(value: Tensor) -> Tensor:
        return rearrange(value, "d c p q -> d (p q c)")

    name, ours = "x_embedder.proj1", "network.patch_embedding"
    if bottleneck is None:
        bias = Move(f"{name}.bias", f"{ours}.bias", (dim,))
        return [*weight(name, ours, dim, 3, patch, patch, change=flat), bias]
    moves = weight(name, f"{ours}.0", bottleneck, 3, patch, patch, change=flat)
    second = "x_embedder.proj2"
    moves += weight(second, f"{ours}.1", dim, bottleneck, 1, 1, change=flat)
    return [*moves, Move(f"{second}.bias", f"{ours}.1.bias", (dim,))]
