"""A cache spread over ranks hands every rank the rows it asks for."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist

from fastlg.errors import UserError
from fastlg.teacher.cache_memory import RowReader, choose_place

WORLD = 3


def arrays():
    generator = torch.Generator().manual_seed(0)
    make = lambda *shape: torch.randn(*shape, generator=generator)  # noqa: E731
    return {
        "map0": make(11, 2, 3, 3).half(),
        "map1": make(11, 4).bfloat16(),
        "map1_energy": make(11),
        "logits": make(11, 5),
    }


def rank_main(rank: int, store: str, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, WORLD), rank=rank, world_size=WORLD)
    reader = RowReader(arrays(), torch.device("cpu"), "shard", batch_size=6)
    held = sum(len(a) for a in reader.shard.arrays.values())
    same = []
    for rows in (torch.tensor([10, 0, rank, 5, 5, 1]), torch.arange(rank + 1) + 7):  # ranks ask for unequal numbers
        taken, own = reader.take(rows, lambda rows=rows: rows)
        same += [torch.equal(taken[name].index_select(0, own), array[rows]) for name, array in arrays().items()]
    try:
        reader.take(torch.arange(7), lambda: torch.arange(7))
    except ValueError as error:
        same.append("7 rows" in str(error))
    rank_0_has_little = {"SC_AVPHYS_PAGES": 10 if rank == 0 else 10**6, "SC_PAGE_SIZE": 4096}
    os.sysconf = rank_0_has_little.__getitem__
    same.append(choose_place(10**6, torch.device("cpu"), "auto") == "mmap")  # all ranks decide as the poorest must
    results.put((rank, all(same) and len(same) == 10, held))
    dist.destroy_process_group()


def test_each_rank_gets_its_rows_and_keeps_a_third(tmp_path):
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=rank_main, args=(r, str(tmp_path / "store"), results)) for r in range(WORLD)]
    for process in processes:
        process.start()
    answers = sorted(results.get(timeout=60) for _ in range(WORLD))
    for process in processes:
        process.join(timeout=60)
    assert [(rank, right) for rank, right, _ in answers] == [(0, True), (1, True), (2, True)]
    assert [held for *_, held in answers] == [4 * 4, 4 * 4, 4 * 3]


def test_one_process_has_nobody_to_share_with():
    with pytest.raises(UserError, match="teacher.cache_memory is shard"):
        RowReader(arrays(), torch.device("cpu"), "shard", batch_size=6)
