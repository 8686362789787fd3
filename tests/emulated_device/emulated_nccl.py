"""NCCL on the emulated device: gloo over the memory of the host, which rejects what NCCL rejects (host tensors)."""

import threading
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist

_BACKEND = "emulated"
_init_process_group = dist.init_process_group
Tensors = Sequence[torch.Tensor]


class EmulatedNCCL(dist.ProcessGroup):
    """A process group for device tensors; every collective is complete when its method returns."""

    def __init__(self, store: Any, rank: int, size: int, timeout: Any):
        super().__init__(rank, size)
        self._own, self._count = rank, size
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)
        self._sent: list[Any] = []

    def getBackendName(self) -> str:
        return "nccl"

    def rank(self) -> int:
        return self._own

    def size(self) -> int:
        return self._count

    def allreduce(self, tensors: Tensors, opts: Any = None) -> Any:
        self._reduce_all(_on_host(tensors), tensors, opts)
        return _done()

    def allreduce_coalesced(self, tensors: Tensors, opts: Any = None) -> Any:
        return self.allreduce(tensors, opts)

    def reduce(self, tensors: Tensors, opts: Any = None) -> Any:
        host = _on_host(tensors)
        self._gloo.reduce(host, opts).wait()
        return _done(tensors, host)

    def broadcast(self, tensors: Tensors, opts: Any = None) -> Any:
        host = _on_host(tensors)
        self._gloo.broadcast(host, opts).wait()
        return _done(tensors, host)

    def allgather(self, outputs: Sequence[Tensors], inputs: Tensors, opts: Any = None) -> Any:
        host = [[torch.empty(one.shape, dtype=one.dtype) for one in output] for output in outputs]
        self._gloo.allgather(host, _on_host(inputs)).wait()
        for output, received in zip(outputs, host, strict=True):
            _done(output, received)
        return _done()

    def _allgather_base(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Any:
        parts = [torch.empty(tensor.numel(), dtype=tensor.dtype) for _ in range(self._count)]
        self._gloo.allgather([parts], [_on_host([tensor])[0].reshape(-1)]).wait()
        return _done([output.view(-1)], [torch.cat(parts)])

    def all_gather_single(self, output: torch.Tensor, tensor: torch.Tensor, *_: Any) -> Any:
        return self._allgather_base(output, tensor)

    def allgather_into_tensor_coalesced(self, outputs: Tensors, tensors: Tensors, opts: Any = None) -> Any:
        for output, tensor in zip(outputs, tensors, strict=True):
            self._allgather_base(output, tensor)
        return _done()

    def _reduce_scatter_base(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None) -> Any:
        host = [_on_host([tensor])[0].reshape(-1).clone()]
        self._reduce_all(host, host, opts)
        return _done([output.view(-1)], [host[0].chunk(self._count)[self._own]])

    def reduce_scatter_single(self, output: torch.Tensor, tensor: torch.Tensor, opts: Any = None, *_: Any) -> Any:
        return self._reduce_scatter_base(output, tensor, opts)

    def reduce_scatter_tensor_coalesced(self, outputs: Tensors, tensors: Tensors, opts: Any = None) -> Any:
        for output, tensor in zip(outputs, tensors, strict=True):
            self._reduce_scatter_base(output, tensor, opts)
        return _done()

    def reduce_scatter(self, outputs: Tensors, inputs: Sequence[Tensors], opts: Any = None) -> Any:
        for output, parts in zip(outputs, inputs, strict=True):
            self._reduce_scatter_base(output, torch.cat([part.reshape(-1) for part in parts]), opts)
        return _done()

    def alltoall_base(
        self, output: torch.Tensor, tensor: torch.Tensor, received: Any, sent: Any, opts: Any = None
    ) -> Any:
        host = torch.empty(output.shape, dtype=output.dtype)
        self._gloo.alltoall_base(host, _on_host([tensor])[0], received, sent).wait()
        return _done([output], [host])

    def send(self, tensors: Tensors, to: int, tag: int) -> Any:
        host = _on_host(tensors)
        self._sent.append(host)  # the buffer outlives the work
        return self._gloo.send(host, to, tag)

    def recv(self, tensors: Tensors, source: int, tag: int) -> Any:
        host, future = _on_host(tensors), torch.futures.Future()
        work = self._gloo.recv(host, source, tag)

        def receive() -> None:  # the caller may send before it waits
            work.wait()
            for output, value in zip(tensors, host, strict=True):
                output.copy_(value)
            future.set_result(None)

        threading.Thread(target=receive, daemon=True).start()
        return _work(future)

    def barrier(self, opts: Any = None) -> Any:
        self._gloo.barrier().wait()
        return _done()

    def _reduce_all(self, host: list[torch.Tensor], outputs: Tensors, opts: Any) -> None:
        operation = opts.reduceOp if opts else dist.ReduceOp.SUM
        mean = operation == dist.ReduceOp.AVG  # gloo has no mean
        for one, output in zip(host, outputs, strict=True):
            options = dist.AllreduceOptions()
            options.reduceOp = dist.ReduceOp.SUM if mean else operation
            self._gloo.allreduce([one], options).wait()
            output.copy_(one / self._count if mean else one)


def _on_host(tensors: Tensors) -> list[torch.Tensor]:
    for tensor in tensors:
        if not tensor.is_cuda:
            raise RuntimeError("No backend type associated with device type cpu: NCCL takes no host tensors")
        if not tensor.is_contiguous():
            raise RuntimeError("Tensors must be contiguous")
    return [tensor.cpu() for tensor in tensors]


def _done(outputs: Tensors = (), received: Tensors = ()) -> Any:
    for output, value in zip(outputs, received, strict=True):
        output.copy_(value)
    future: Any = torch.futures.Future()
    future.set_result(None)
    return _work(future)


def _work(future: Any) -> Any:
    from torch._C._distributed_c10d import _create_work_from_future

    return _create_work_from_future(future)


def install(current_device: Any) -> None:
    """Replace the backend ``nccl``; ``current_device`` returns the index of the current device."""
    internal: Any = dist.distributed_c10d

    def init_process_group(backend: str | None = None, *args: Any, **kwargs: Any) -> Any:
        if backend == "nccl":
            if not hasattr(dist.Backend, _BACKEND.upper()):
                dist.Backend.register_backend(_BACKEND, lambda *group: EmulatedNCCL(*group), devices=["cuda"])
            backend = _BACKEND
            bound = kwargs.pop("device_id", None)  # torch asks the group of a device for NCCL's own methods
            if bound is not None and torch.device(bound).index != current_device():
                raise RuntimeError(f"the process group is bound to {bound}, but the device is cuda:{current_device()}")
            for name in ("_get_pg_default_device", "_get_object_coll_device"):
                setattr(internal, name, lambda _group=None: torch.device("cuda", current_device()))
        return _init_process_group(backend, *args, **kwargs)

    dist.init_process_group = internal.init_process_group = init_process_group
    dist.is_nccl_available = lambda: True
