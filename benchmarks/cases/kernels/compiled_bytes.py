"""Bytes of a forward and backward pass as ``torch.compile`` schedules them for an H100, counted where there is none.

Inductor's own passes are run on tensors without memory that say they are on ``cuda:0``: joint graph passes, the choice
of what to keep for backward, lowering and fusion, until it knows its kernels; no code is compiled or run. A kernel
reads every tensor that it uses once, at most whole, and writes once what others use. This is Inductor's own count
(``get_read_write_buffers_sizes``): a reduction that walks over its input twice counts too little. torch's attention is
its flash kernel here, whose float32 sums in memory are not counted either.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple
from unittest import mock

import torch
import torch.utils._triton
from functorch.compile import aot_function, min_cut_rematerialization_partition
from torch import Tensor
from torch._guards import detect_fake_mode
from torch._inductor import compile_fx
from torch._inductor import config as inductor
from torch._inductor.debug import DebugContext
from torch._inductor.decomposition import select_decomp_table
from torch._inductor.graph import GraphLowering
from torch._inductor.scheduler import ExternKernelSchedulerNode
from torch._inductor.virtualized import V
from torch.fx import GraphModule, Node
from torch.utils._pytree import tree_map_only

H100 = SimpleNamespace(
    name="NVIDIA H100", major=9, minor=0, multi_processor_count=132, warp_size=32, total_memory=80 << 30,
    regs_per_multiprocessor=65536, max_threads_per_multi_processor=2048, max_threads_per_block=1024,
    shared_memory_per_block=49152, shared_memory_per_block_optin=232448, L2_cache_size=50 << 20,
)  # fmt: skip
DEVICE = torch.device("cuda", 0)
GENERATED = ("aten", "prims", "inductor_prims")  # whose operations Inductor writes kernels for


def attention_of_a_gpu():
    """Inside, ``scaled_dot_product_attention`` is what it chooses on such a GPU."""

    def flash(query: Tensor, key: Tensor, value: Tensor, **options) -> Tensor:
        return torch.ops.aten._scaled_dot_product_flash_attention(query, key, value, scale=options.get("scale"))[0]

    return mock.patch.object(torch.nn.functional, "scaled_dot_product_attention", flash)


@contextmanager
def pretended_gpu() -> Iterator[None]:
    """Inside, torch is told of an H100 by all that Inductor asks. Nothing may be computed.

    What torch remembers of the machine's Triton is forgotten on the way in and out.
    """
    from torch._dynamo.device_interface import CudaInterface

    told = {
        "is_available": lambda: True,
        "is_bf16_supported": lambda *_: True,
        "current_device": lambda: 0,
        "device_count": lambda: 1,
        "get_device_properties": lambda *_: H100,
        "get_device_capability": lambda *_: (H100.major, H100.minor),
    }
    own = {name: staticmethod(told[name]) for name in ("get_device_properties", "current_device", "device_count")}
    with ExitStack() as stack:
        for owner, answers in (
            (torch.cuda, told),
            (CudaInterface, own),
            (CudaInterface.Worker, {"get_device_properties": own["get_device_properties"]}),
        ):
            for name, answer in answers.items():
                stack.enter_context(mock.patch.object(owner, name, answer))
        remembered = [own for own in vars(torch.utils._triton).values() if hasattr(own, "cache_clear")]
        for forget in (own.cache_clear for own in remembered):
            forget()
            stack.callback(forget)
        yield


class Kernel(NamedTuple):
    """Of Inductor's schedule. operations: names of what it makes, each with its arguments, all without memory."""

    bytes: int
    operations: list[tuple[str, list]]


def scheduled(function: Callable[..., Tensor], arguments: list[Tensor]) -> list[Kernel]:
    """Kernels of ``function(*arguments)`` on an H100, and of its backward pass where anything has a gradient.

    arguments  fake tensors on the CPU, where autograd asks for no driver: what it traces is moved before it is compiled
    """
    kernels: list[Kernel] = []

    def compile_as(parts_of: Callable, graph_module: GraphModule, inputs: list, **options):
        with V.set_fake_mode(detect_fake_mode(inputs)):
            cpu = torch.device("cpu")  # where the passes trace their patterns
            moved = _on_gpu(compile_fx._recursive_joint_graph_passes(graph_module, input_device=cpu))
            with pretended_gpu():
                for part in parts_of(moved, **options):
                    kernels.extend(_lowered(part))
        raise _AllIsKnown

    def forward_and_backward(joint: GraphModule, **options) -> tuple[GraphModule, GraphModule]:
        return min_cut_rematerialization_partition(joint, _inputs(joint), compiler="inductor", **options)

    own = {
        "partition_fn": partial(compile_as, forward_and_backward),
        "inference_compiler": partial(compile_as, lambda whole: [whole]),
        "fw_compiler": None,  # comes too late
        "decompositions": {**select_decomp_table(), torch.ops.aten.bernoulli.p: _bernoulli},
    }
    with attention_of_a_gpu(), inductor.patch(shape_padding=False), suppress(_AllIsKnown):  # padding is timed on a GPU
        aot_function(function, **own)(*arguments)
    return kernels


def _bernoulli(like: Tensor, p: float = 0.5, *, generator=None) -> Tensor:
    """What Inductor makes of it on a GPU, and not on a CPU."""
    return (torch.rand_like(like, dtype=torch.float32) < p).to(like.dtype)


class _AllIsKnown(Exception):
    """Leaves torch's compiler before it makes code."""


def _inputs(graph_module: GraphModule) -> list:
    return [node.meta["val"] for node in graph_module.graph.find_nodes(op="placeholder")]


def _on_gpu(graph_module: GraphModule) -> GraphModule:
    """The same operations on tensors of the GPU."""
    own = _inputs(graph_module)
    with V.fake_mode:
        moved = [torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=DEVICE) for t in own]
    for node in graph_module.graph.nodes:
        for own in ("args", "kwargs"):
            setattr(node, own, tree_map_only(torch.device, lambda _: DEVICE, getattr(node, own)))
    graph_module.recompile()
    compile_fx.fake_tensor_prop(graph_module, moved)
    return graph_module


def _lowered(graph_module: GraphModule) -> list[Kernel]:
    """What Inductor makes of a graph, as ``compile_fx`` asks it to."""
    inputs = _inputs(graph_module)
    compile_fx.view_to_reshape(graph_module)
    with torch.no_grad():
        compile_fx.fake_tensor_prop(graph_module, inputs)
    compile_fx._recursive_post_grad_passes(graph_module, is_inference=False)
    graph = GraphLowering(graph_module, example_inputs=inputs, shape_env=V.fake_mode.shape_env)
    with V.set_graph_handler(graph), V.set_extern_kernel_nodes([]), V.set_debug_handler(DebugContext()):
        graph.run(*inputs)
        graph.init_wrapper_code()
        graph._update_scheduler()
        return [Kernel(node.get_read_write_buffers_sizes(), _operations(node)) for node in graph.scheduler.nodes]


def _operations(node) -> list[tuple[str, list]]:
    """What a node of the schedule makes, by the names that its operations had before Inductor took them apart."""
    found = {}
    for inner in node.get_nodes():
        is_call = isinstance(inner, ExternKernelSchedulerNode)
        call = getattr(inner.node.op_overload, "overloadpacket", None) if is_call else None
        for origin in inner.node.get_origins() if inner.node is not None else ():
            if origin.op != "call_function" or origin.target is operator.getitem:
                continue
            is_own = origin.target.overloadpacket is call if call else origin.target.namespace in GENERATED
            if is_own:  # a kernel also names the calls whose results it reads, and a call what becomes of its own
                operation = origin.meta.get("original_aten") or origin.target
                values = [own.meta.get("val") if isinstance(own, Node) else own for own in origin.args]
                found[origin] = (operation.overloadpacket.__name__, values)
    return list(found.values())
