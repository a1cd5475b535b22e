"""What autograd keeps of a network's blocks, in CPU memory between forward and backward pass."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import cache, partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.multiprocessing.reductions import StorageWeakRef

MIN_BYTES = 2**20  # smaller storages stay: moving them costs more calls than it saves memory


class Lane(ABC):
    """A way between a device and CPU memory; copies on it follow each other, beside the device's
    other work.
    """

    @abstractmethod
    def leave(self, flat: Tensor) -> tuple[Tensor, object]:
        """Begin a copy to CPU memory; the copy, and a mark of its end."""

    @abstractmethod
    def come_back(self, host: Tensor) -> tuple[Tensor, object]:
        """Begin a copy to the device; the copy, and a mark of its end."""

    @abstractmethod
    def wait(self, mark: object) -> None:
        """Let the device's work from here on begin after a mark."""


class CudaLane(Lane):
    """Copies between a CUDA device and pinned memory on a stream of their own.

    Memory of the device is always taken and given back on the stream that computes: the lane waits
    for that stream before it copies, and that stream for the lane's mark before it reads what came
    back, and before the source of what left is freed. PyTorch's allocator of pinned memory itself
    waits for copies that are under way.

    Args:
        device: the CUDA device.
    """

    def __init__(self, device: torch.device):
        self.device, self.stream = device, torch.cuda.Stream(device)

    def leave(self, flat: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        host = torch.empty(flat.shape, dtype=flat.dtype, pin_memory=True)
        return host, self.copy(host, flat)

    def come_back(self, host: Tensor) -> tuple[Tensor, torch.cuda.Event]:
        flat = torch.empty_like(host, device=self.device)
        mark = self.copy(flat, host)
        flat.record_stream(self.stream)  # where a graph is dropped before it was waited for
        return flat, mark

    def copy(self, target: Tensor, source: Tensor) -> torch.cuda.Event:
        """Begin a copy after the work that computes so far."""
        self.stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self.stream):
            target.copy_(source, non_blocking=True)
        return self.stream.record_event()

    def wait(self, mark: torch.cuda.Event) -> None:
        torch.cuda.current_stream(self.device).wait_event(mark)


@cache
def lane_of(device: torch.device) -> Lane | None:
    """The device's lane; None where tensors lie in CPU memory already."""
    return CudaLane(device) if device.type == "cuda" else None


class Parked:
    """The bytes of one storage: on the device, in CPU memory, or on the device again.

    Args:
        flat: all bytes of the storage.
        lane: the device's lane.
    """

    def __init__(self, flat: Tensor, lane: Lane):
        self.lane, self.on_device = lane, flat
        self.host, self.mark = lane.leave(flat)
        self.has_left = self.is_awaited = False

    def release(self) -> None:
        """Free the bytes on the device, once they have left."""
        if not self.has_left:
            self.lane.wait(self.mark)
            self.on_device, self.has_left = None, True

    def fetch(self) -> None:
        """Begin the way back, unless the bytes are on the device."""
        if self.on_device is None:
            self.on_device, self.mark = self.lane.come_back(self.host)
            self.is_awaited = True

    def flat(self) -> Tensor:
        """The bytes on the device."""
        self.fetch()
        if self.is_awaited:
            self.lane.wait(self.mark)
            self.is_awaited = False
        return self.on_device


class Group:
    """What one block keeps. When its backward pass begins, the group before it is fetched too.

    Args:
        before: the group of the block before.
    """

    def __init__(self, before: "Group | None"):
        # Strong references would chain the groups of all steps, with all they hold.
        self.before = None if before is None else weakref.ref(before)
        self.parked: weakref.WeakKeyDictionary[Parked, None] = weakref.WeakKeyDictionary()

    def release(self) -> None:
        """Free its memory on the device."""
        for parked in self.parked:
            parked.release()

    def fetch(self) -> None:
        """Begin the way back of all it holds, the last first, then of the group before."""
        before = None if self.before is None else self.before()
        for group in (self, before):
            for parked in reversed(list(group.parked) if group is not None else []):
                parked.fetch()


class Kept(NamedTuple):
    """A tensor that autograd keeps, as a view of parked bytes."""

    parked: Parked
    group: Group
    dtype: torch.dtype
    offset: int
    size: torch.Size
    stride: tuple[int, ...]

    def tensor(self) -> Tensor:
        """The tensor on its device."""
        self.group.fetch()
        flat = self.parked.flat()
        view = torch.empty(0, dtype=self.dtype, device=flat.device)
        return view.set_(flat.untyped_storage(), self.offset, self.size, self.stride)


class Offload:
    """Moves what autograd keeps of each block to CPU memory, and back just before it is needed.

    A storage moves once, however many tensors are views of it; parameters and storages below
    MIN_BYTES stay, and so do those of the block that ran last, which the backward pass wants first.
    Copies run beside the computation: a block's memory is free after the next block. On a CPU
    nothing moves.
    """

    def __init__(self) -> None:
        self.last: Group | None = None
        self.known: dict[int, tuple[StorageWeakRef, weakref.ref[Parked]]] = {}

    def __deepcopy__(self, memo: dict[int, object]) -> "Offload":
        return Offload()  # of what another network keeps, its copy keeps nothing

    def run(self, block: nn.Module, call: Callable[[], object]) -> object:
        """Run a block by `call`."""
        before, self.last = self.last, Group(self.last)
        with self.hooks(block, self.last):
            out = call()
        if before is not None:
            before.release()
        self.known = {key: one for key, one in self.known.items() if not one[0].expired()}
        return out

    def hooks(self, block: nn.Module, group: Group) -> AbstractContextManager:
        """What autograd does with the tensors that it keeps."""
        pack = partial(self.pack, block, group)
        if block._compiled_call_impl is not None:  # where its graph breaks, this would be compiled
            pack = torch.compiler.disable(pack)
        return saved_tensors_hooks(pack, unpack)

    def pack(self, block: nn.Module, group: Group, tensor: Tensor) -> Tensor | Kept:
        """Park a tensor, unless it must stay."""
        lane = lane_of(tensor.device)
        if lane is None or type(tensor) not in (Tensor, nn.Parameter):
            return tensor
        storage = tensor.untyped_storage()
        if storage.nbytes() < MIN_BYTES or is_weight(storage, block):
            return tensor
        parked = self.park(storage, lane, group)
        where = tensor.dtype, tensor.storage_offset(), tensor.shape, tensor.stride()
        return Kept(parked, group, *where)

    def park(self, storage: torch.UntypedStorage, lane: Lane, group: Group) -> Parked:
        """The bytes of a storage, which may be parked already."""
        # A freed storage's address is soon another's, but not while a weak reference is held.
        known = self.known.get(storage._cdata)
        found = None if known is None else known[1]()
        if found is None:
            flat = torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
            found = Parked(flat, lane)
            self.known[storage._cdata] = StorageWeakRef(storage), weakref.ref(found)
        group.parked[found] = None
        return found


def unpack(kept: Tensor | Kept) -> Tensor:
    """The tensor that was kept."""
    return kept if isinstance(kept, Tensor) else kept.tensor()


def is_weight(storage: torch.UntypedStorage, block: nn.Module) -> bool:
    """Whether a storage is that of one of the block's parameters."""
    return any(own.untyped_storage()._cdata == storage._cdata for own in block.parameters())
