import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from video_rs.data.sampler import BatchStream, SampleKey
from video_rs.errors import UserError


def flat(stream):
    return [key for micro_batch in stream for key in micro_batch]


@st.composite
def layouts(draw):
    """Draw num_samples, batch_size, micro_batch, world_size and num_steps that fit together."""
    micro, runs, world = draw(st.integers(1, 4)), draw(st.integers(1, 3)), draw(st.integers(1, 4))
    return draw(st.integers(1, 30)), micro * runs * world, micro, world, draw(st.integers(1, 12))


@given(layouts(), st.integers(0, 2**32 - 1))
def test_every_world_size_sees_the_same_global_batches(layout, seed):
    samples, batch, micro, world, steps = layout
    whole = BatchStream(samples, batch_size=batch, num_steps=steps, seed=seed)
    ranks = [
        list(
            BatchStream(
                samples, batch_size=batch, num_steps=steps, seed=seed, micro_batch=micro, rank=r, world_size=world
            )
        )
        for r in range(world)
    ]
    per_step = batch // world // micro
    for step, expected in enumerate(whole):
        parts = [key for rank in ranks for part in rank[step * per_step : (step + 1) * per_step] for key in part]
        assert parts == expected == whole.keys(step)
    assert all(len(part) == micro for rank in ranks for part in rank)


@given(layouts(), st.data())
def test_resuming_goes_on_where_it_stopped(layout, data):
    samples, batch, micro, world, steps = layout
    start = data.draw(st.integers(0, steps))
    options = {
        "batch_size": batch,
        "num_steps": steps,
        "seed": 3,
        "micro_batch": micro,
        "rank": world - 1,
        "world_size": world,
    }
    whole = list(BatchStream(samples, **options))
    rest = BatchStream(samples, **options, start_step=start)
    assert list(rest) == whole[start * batch // world // micro :]
    assert len(rest) == len(list(rest))


@given(st.integers(1, 30), st.integers(1, 9), st.booleans())
def test_epochs_follow_each_other_without_loss(samples, batch, balanced):
    steps = 3 * samples
    labels = np.arange(samples) % 3 if balanced else None
    keys = flat(BatchStream(samples, batch_size=batch, num_steps=steps, seed=0, labels=labels))
    assert len(keys) == len(set(keys)) == steps * batch
    for position, key in enumerate(keys):
        assert key.epoch == position // samples
    if not balanced:
        assert sorted(key.index for key in keys[:samples]) == list(range(samples))


def test_epochs_and_seeds_differ():
    first, second = (flat(BatchStream(64, batch_size=64, num_steps=2, seed=seed)) for seed in (0, 1))
    orders = [[key.index for key in keys] for keys in (first[:64], first[64:], second[:64])]
    assert orders[0] != orders[1] and orders[0] != orders[2] and orders[0] != list(range(64))


def test_balanced_draws_even_out_the_classes():
    labels = np.array([0] * 900 + [1] * 90 + [2] * 10)
    keys = flat(BatchStream(1000, batch_size=100, num_steps=60, seed=0, labels=labels))
    shares = np.bincount(labels[[key.index for key in keys]]) / len(keys)
    assert np.abs(shares - 1 / 3).max() < 0.03
    repeats = [key.copy for key in keys if key.epoch == 0 and key.index == 995]
    assert repeats == list(range(len(repeats))) and len(repeats) > 10


@given(layouts(), st.integers(2, 4), st.booleans())
def test_repeats_follow_each_other_and_change_no_order(layout, repeats, balanced):
    samples, batch, micro, world, steps = layout
    options = {"batch_size": batch, "seed": 1, "labels": np.arange(samples) % 3 if balanced else None}
    once = flat(BatchStream(samples, num_steps=steps, **options))
    keys = flat(BatchStream(samples, num_steps=steps * repeats, **options, repeats=repeats))
    assert len(keys) == len(set(keys)) == repeats * len(once)
    for position, key in enumerate(keys):
        epoch, index, use, phase = once[position // repeats]
        assert key == (epoch, index, use * repeats + position % repeats, phase)
    start = steps // 2
    rest = BatchStream(samples, num_steps=steps * repeats, start_step=start, **options, repeats=repeats)
    assert flat(rest) == keys[start * batch :] and len(rest) == steps * repeats - start


@given(st.lists(st.integers(1, 9), min_size=1, max_size=12), st.integers(1, 40), st.integers(0, 2**32 - 1), st.data())
def test_shards_are_mixed_in_blocks(sizes, block, seed, data):
    """An epoch has every sample once, in blocks of whole shards; a single block has the order without shards."""
    samples, starts = sum(sizes), np.cumsum([0, *sizes[:-1]])
    shard_of = np.repeat(np.arange(len(sizes)), sizes)
    options = {"batch_size": samples, "num_steps": 2, "seed": seed}
    stream = BatchStream(samples, **options, shards=starts, block=block)
    for epoch in range(2):
        order = [key.index for key in stream.keys(epoch)]
        assert sorted(order) == list(range(samples))
        shards, first, blocks = shard_of[order], 0, []
        while first < samples:  # a block ends where no shard goes on and enough samples have come
            end = next(
                n
                for n in range(first + 1, samples + 1)
                if n == samples or (n - first >= min(block, samples) and not {*shards[first:n]} & {*shards[n:]})
            )
            blocks.append(end - first)
            first = end
        assert samples // (block + max(sizes)) <= len(blocks) and (samples >= 2 * block + max(sizes)) <= (
            len(blocks) > 1
        )
        if samples <= block:
            assert stream.keys(epoch) == BatchStream(samples, **options).keys(epoch)
    start = data.draw(st.integers(0, 12))
    options |= {"batch_size": 3, "num_steps": 12, "shards": starts, "block": block}
    assert flat(BatchStream(samples, **options, start_step=start)) == flat(BatchStream(samples, **options))[3 * start :]


def test_blocks_mix_samples_and_shards():
    """Within a block shards are interleaved, and the blocks of another epoch differ."""
    stream = BatchStream(64, batch_size=64, num_steps=2, seed=0, shards=np.arange(0, 64, 8), block=16)
    orders = [np.array([key.index for key in stream.keys(epoch)]) // 8 for epoch in range(2)]
    blocks = [[frozenset(part) for part in order.reshape(4, 16).tolist()] for order in orders]
    assert all(len(block) == 2 for epoch in blocks for block in epoch) and {*blocks[0]} != {*blocks[1]}
    assert all(len({*part[:8]}) == 2 for part in orders[0].reshape(4, 16).tolist())


def test_another_seed_takes_other_shards_first():
    """The order of the shards changes too."""
    options = {"batch_size": 64, "num_steps": 1, "shards": np.arange(0, 64, 4), "block": 16}
    first = {
        frozenset(key.index // 4 for key in BatchStream(64, seed=seed, **options).keys(0)[:16]) for seed in range(4)
    }
    assert len(first) == 4


def test_what_is_too_little_for_a_block_is_mixed_with_the_last():
    """5 shards of 8 samples in blocks of two shards: the fifth joins the last block."""
    for seed in range(20):
        stream = BatchStream(40, batch_size=40, num_steps=1, seed=seed, shards=np.arange(0, 40, 8), block=16)
        shards = [key.index // 8 for key in stream.keys(0)]
        assert len({*shards[:16]}) == 2 and len({*shards[-8:]}) > 1


@pytest.mark.parametrize(
    "options", [{"batch_size": 6, "world_size": 4}, {"batch_size": 8, "micro_batch": 3}, {"batch_size": 0}]
)
def test_batches_that_do_not_divide(options):
    with pytest.raises(UserError, match="train.batch_size"):
        BatchStream(10, num_steps=1, seed=0, **options)


def test_no_samples():
    with pytest.raises(UserError, match="empty"):
        BatchStream(0, batch_size=1, num_steps=1, seed=0)


def test_keys_are_plain_tuples():
    assert SampleKey(1, 2) == (1, 2, 0, 0)


def test_a_phase_is_a_function_of_the_step():
    options = {"batch_size": 4, "num_steps": 9, "seed": 0, "micro_batch": 2, "world_size": 2}
    stream = BatchStream(10, **options, phase_ends=[2, 2, 5])  # the second is shorter than a step
    assert [{key.phase for key in stream.keys(step)} for step in range(9)] == [{1}] * 2 + [{3}] * 3 + [{0}] * 4
    plain = BatchStream(10, **options)
    for step in range(9):
        assert [key[:3] for key in stream.keys(step)] == [key[:3] for key in plain.keys(step)]
        assert {key.phase for key in plain.keys(step)} == {0}
    resumed = BatchStream(10, **options, phase_ends=[2, 2, 5], rank=1, start_step=4)
    assert [part[0].phase for part in resumed] == [3] + [0] * 4
