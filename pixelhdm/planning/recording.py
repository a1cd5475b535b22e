"""What operations do: arithmetic, bytes that they move, and bytes that live at once."""

import weakref
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from pixelhdm.models.linear import HAS_ONEDNN

aten = torch.ops.aten


class Work(NamedTuple):
    """One operation.

    Attributes:
        flop: multiplications and additions of matrix products, attention and convolutions.
        read: storages that it reads, with the bytes of each.
        written: storages that it writes, with the bytes of each.
        itemsize: bytes of a number that it makes.
    """

    flop: int
    read: dict[int, int]
    written: dict[int, int]
    itemsize: int

    @property
    def is_product(self) -> bool:
        """Whether it is one of those products, which a compiler leaves alone."""
        return self.flop > 0

    @property
    def moved(self) -> int:
        """Bytes that it moves."""
        return sum(self.read.values()) + sum(self.written.values())


class Recorder(TorchDispatchMode):
    """Write down every operation inside, and count the bytes of the storages that they make.

    Views move nothing and are left out.

    Attributes:
        works: the operations, in order.
        live: bytes of the storages made here that are still there.
        peak: the highest live so far.
    """

    def __init__(self) -> None:
        super().__init__()
        self.works: list[Work] = []
        self.live = self.peak = self.last = 0
        self.numbers: weakref.WeakKeyDictionary[Any, int] = weakref.WeakKeyDictionary()

    def begin(self) -> list[Work]:
        """The operations so far, of which none are kept, and a new peak."""
        works, self.works, self.peak = self.works, [], self.live
        return works

    def number(self, storage: torch.UntypedStorage, is_new: bool = False) -> int:
        """The number of a storage; a new one counts as live until it is gone."""
        if storage not in self.numbers:
            self.last += 1
            self.numbers[storage] = self.last
            if is_new:
                size = storage.nbytes()
                self.live += size
                self.peak = max(self.peak, self.live)
                weakref.finalize(storage, self.free, size)
        return self.numbers[storage]

    def free(self, size: int) -> None:
        """Count a storage that is gone."""
        self.live -= size

    def bytes_of(self, values: Any, is_new: bool = False) -> dict[int, int]:
        """The storages of all tensors in some values, with the bytes that the tensors cover."""
        found: dict[int, int] = {}
        for value in tree_leaves(values):
            if isinstance(value, Tensor):
                storage = value.untyped_storage()
                covered = min(value.numel() * value.element_size(), storage.nbytes())
                number = self.number(storage, is_new)
                found[number] = max(found.get(number, 0), covered)
        return found

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        if func is torch.ops.prim.device.default:  # half of all calls
            return args[0].fake_device
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        if func.namespace not in COMPUTING:
            return out
        read = self.bytes_of((args, kwargs))
        made = self.bytes_of(out, is_new=True)
        changed = self.bytes_of(list(mutated(func, args, kwargs)))
        written = {n: size for n, size in made.items() if n not in read} | changed
        if written:
            flop = flop_of(func, args, kwargs, out)
            size = next(v.element_size() for v in tree_leaves((out, args)) if isinstance(v, Tensor))
            self.works.append(Work(flop, {} if func in FILLING else read, written, size))
        return out


def mutated(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
    """The arguments that an operation changes in place."""
    for place, argument in enumerate(func._schema.arguments):
        if argument.alias_info is not None and argument.alias_info.is_write:
            yield args[place] if place < len(args) else kwargs.get(argument.name)


def flop_of(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Any) -> int:
    """FLOP of one operation; 0 where it is no product."""
    packet = func._overloadpacket
    if packet in OWN_FLOP:
        return OWN_FLOP[packet](args, out)
    if packet in flop_registry:
        return flop_registry[packet](*args, **kwargs, out_val=out)
    return 0


def attention_flop(num_products: int, at: int) -> Callable[[tuple[Any, ...], Any], int]:
    """FLOP of attention, `num_products` of each query with each key, whose query and key are the
    arguments from number `at` on; torch's own count knows no grouped heads.
    """

    def count(args: tuple[Any, ...], out: Any) -> int:
        q, k = args[at], args[at + 1]
        batch, heads, length, dim = q.shape
        return num_products * 2 * batch * heads * length * k.shape[2] * dim

    return count


def linear_flop(args: tuple[Any, ...], out: Any) -> int:
    """FLOP of x W^T."""
    return 2 * out.numel() * args[1].shape[1]


# Forward: scores and values. Backward: scores again, and two for each of both.
OWN_FLOP = {
    aten._scaled_dot_product_flash_attention: attention_flop(2, 0),
    aten._scaled_dot_product_flash_attention_backward: attention_flop(5, 1),
    aten._scaled_dot_product_flash_attention_for_cpu: attention_flop(2, 0),
    aten._scaled_dot_product_flash_attention_for_cpu_backward: attention_flop(5, 1),
}
if HAS_ONEDNN:
    OWN_FLOP[torch.ops.mkldnn._linear_pointwise] = linear_flop
COMPUTING = {"aten", "mkldnn", "torch_attn"}
FILLING = {aten.zero_.default, aten.fill_.Scalar}
