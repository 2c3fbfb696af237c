"""Test the order of training and its split among processes against plain sets and lists."""

import pytest

from bevreshape.data.datamodule import ResumableShuffleSampler, evaluation_sampler
from bevreshape.errors import InputError


def test_epoch_visits_distinct_samples_in_another_order_each_time() -> None:
    order = ResumableShuffleSampler(103, batch_size=10, seed=3)
    first = list(order)
    order.set_epoch(1)
    second = list(order)
    assert len(first) == len(set(first)) == len(order) == 100
    assert set(first) <= set(range(103))
    assert first != second
    order.set_epoch(0)
    assert list(order) == first
    assert list(ResumableShuffleSampler(103, batch_size=10, seed=4)) != first


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_each_batch_of_the_single_process(world: int) -> None:
    whole = list(ResumableShuffleSampler(103, batch_size=4 * world, seed=0))
    shares = [list(ResumableShuffleSampler(103, batch_size=4, seed=0, rank=rank, world=world)) for rank in range(world)]
    for batch in range(len(whole) // (4 * world)):
        together = [index for share in shares for index in share[4 * batch : 4 * batch + 4]]
        assert sorted(together) == sorted(whole[4 * world * batch : 4 * world * (batch + 1)])


def test_start_skips_trained_batches_in_the_first_epoch() -> None:
    whole = list(ResumableShuffleSampler(50, batch_size=5, seed=1, epoch=2))
    resumed = ResumableShuffleSampler(50, batch_size=5, seed=1, epoch=2, start=3)
    assert len(resumed) == 50, "Lightning counts the whole epoch"
    assert list(resumed) == whole[15:]
    assert list(resumed) == whole


def test_too_few_samples_are_refused() -> None:
    with pytest.raises(InputError, match=r"7 training samples do not fill one batch of 4 on 2"):
        ResumableShuffleSampler(7, batch_size=4, seed=0, world=2)


@pytest.mark.parametrize(("world", "accumulated"), [(1, 2), (2, 1), (2, 3), (3, 4)])
def test_accumulated_batches_are_those_of_one_large_batch(world: int, accumulated: int) -> None:
    samples = 2 * world * accumulated
    whole = list(ResumableShuffleSampler(103, samples, seed=5, epoch=2))
    shares = [
        list(ResumableShuffleSampler(103, 2, seed=5, rank=rank, world=world, epoch=2, accumulated=accumulated))
        for rank in range(world)
    ]
    assert {len(share) for share in shares} == {103 // samples * accumulated * 2}
    for step in range(103 // samples):
        own = [index for share in shares for index in share[step * accumulated * 2 : (step + 1) * accumulated * 2]]
        assert sorted(own) == sorted(whole[step * samples : (step + 1) * samples])


@pytest.mark.parametrize(("length", "world"), [(7, 2), (5, 5), (100, 3)])
def test_evaluation_reads_every_sample_once(length: int, world: int) -> None:
    samplers = [evaluation_sampler(range(length), rank, world) for rank in range(world)]
    shares = [list(sampler) for sampler in samplers]
    assert shares == [list(range(rank, length, world)) for rank in range(world)]
    assert [len(sampler) for sampler in samplers] == [len(share) for share in shares]


def test_more_processes_than_samples_are_refused() -> None:
    with pytest.raises(InputError, match=r"trainer\.devices=2"):
        evaluation_sampler(range(2), 0, 3)
