"""A cache spread over ranks hands every rank the features of its samples, whichever rank holds them."""

from __future__ import annotations

import multiprocessing
import os

import pytest
import torch
import torch.distributed as dist
from cache_cases import FIXED, PLAIN, RUNNING, built
from patience import HANG_S

from fastlg.data.loaders.plan import SamplePlan
from fastlg.data.loaders.torch import TorchLoader
from fastlg.errors import UserError
from fastlg.teacher.cache.memory import RowReader, choose_place
from fastlg.teacher.cache.read import CachedTeacher

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


def run_ranks(main, world: int, *arguments) -> list:
    """What the ranks' processes put on their queue, sorted."""
    context = multiprocessing.get_context("fork")
    results = context.Queue()
    processes = [context.Process(target=main, args=(rank, *arguments, results)) for rank in range(world)]
    for process in processes:
        process.start()
    answers = sorted(results.get(timeout=HANG_S) for _ in range(world))
    for process in processes:
        process.join(timeout=HANG_S)
    return answers


def test_each_rank_gets_its_rows_and_keeps_a_third(tmp_path):
    answers = run_ranks(rank_main, WORLD, str(tmp_path / "store"))
    assert [(rank, right) for rank, right, _ in answers] == [(0, True), (1, True), (2, True)]
    assert [held for *_, held in answers] == [4 * 4, 4 * 4, 4 * 3]


def teacher_main(rank: int, store: str, cache, images, results) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", store=dist.FileStore(store, 2), rank=rank, world_size=2)
    per_rank = 8
    plan = SamplePlan(size=16, batch_size=per_rank, train=True, seed=3, drop_last=False, rank=rank, world_size=2)
    sizes = torch.from_numpy(images.sizes)
    sharded, whole = (
        CachedTeacher(cache, sizes, device=torch.device("cpu"), memory=memory, batch_size=per_rank)
        for memory in ("shard", "mmap")
    )
    held = [len(array) for array in sharded.reader.shard.arrays.values()]
    counts, elsewhere, right = [], 0, True
    for batch in sharded.follow(TorchLoader(images, plan)).epoch(0):
        rows = cache.rows(batch.sample_ids, batch.flip)
        counts.append(len(rows))
        elsewhere += int((rows % 2 != rank).sum())
        guide, truth = sharded(None, batch), whole(None, batch)
        right &= torch.equal(guide.logits, cache.arrays["logits"][rows])
        for ours, true in zip(guide.maps, truth.maps, strict=True):
            parts = [(ours, true)] if isinstance(ours, torch.Tensor) else zip(ours[:2], true[:2], strict=True)
            right &= all(torch.equal(a, b) for a, b in parts)
    results.put((rank, right, counts, elsewhere, held))
    dist.destroy_process_group()


@pytest.mark.parametrize("recipe", [PLAIN, [*FIXED, "teacher.cache_form=compact"]], ids=["maps", "compact"])
def test_two_ranks_read_from_each_others_shards_what_a_whole_cache_says(project, tmp_path, recipe):
    _, stores, cache = built(*recipe, *RUNNING)
    answers = run_ranks(teacher_main, 2, str(tmp_path / "store"), cache, stores.train)
    rows = len(cache.arrays["logits"])
    for rank, right, counts, elsewhere, held in answers:
        assert right, rank
        assert counts == [8, 8, 8, 8, 7], "78 samples: four whole steps of 16 and one of 14"
        assert 0 < elsewhere < 39, "some of the samples lay on the other rank, some here"
        assert held == [rows // 2] * len(held)


def test_one_process_has_nobody_to_share_with():
    with pytest.raises(UserError, match="teacher.cache_memory is shard"):
        RowReader(arrays(), torch.device("cpu"), "shard", batch_size=6)
