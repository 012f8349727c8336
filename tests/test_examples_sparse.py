"""The block-sparse examples: that recipes are the patterns they name, and that chosen blocks train."""

from __future__ import annotations

import math

import numpy as np
import pytest

import flashcupy

try:
    import block_patterns
    import block_topk
    from block_patterns import gallery, near_cube, tile_order
    from block_topk import TopBlocks, all_blocks, last_blocks, visited
    from recall_task import HEADS, KV_HEADS, VALUES, RecallModel, Task
except SystemExit as error:  # an example without its packages says so and ends
    pytest.skip(str(error), allow_module_level=True)

N, BLOCK = 320, 16
I, J = np.arange(N)[:, None], np.arange(N)[None]  # noqa: E741  (the formulas' own names)
BI, BJ = I // BLOCK, J // BLOCK


def seen(mask):
    dense = mask.to_dense()[0]
    return dense[0] if len(dense) == 1 else dense


# Recipes, against their definition token by token


def test_windows():
    assert np.array_equal(seen(block_patterns.causal_window(N, 50, BLOCK)), (J <= I) & (J > I - 50))
    around = (abs(I - J) <= 25) | (I < 9) | (J < 9)
    assert np.array_equal(seen(block_patterns.longformer(N, 50, 9, BLOCK)), around)
    apart = (BI - BJ) % 3 == 0
    assert np.array_equal(seen(block_patterns.dilated(N, 2, 3, BLOCK)), apart & (abs(BI - BJ) <= 6))
    far = (BI - BJ < 4) | ((BI - BJ) % 4 == 0)
    assert np.array_equal(seen(block_patterns.strided(N, 4, BLOCK)), far & (J <= I))


def test_bigbird_draws_blocks_beside_the_window_and_the_global_ones():
    blocks = seen(block_patterns.bigbird(N, 2, block=BLOCK)).reshape(20, BLOCK, 20, BLOCK).any((1, 3))
    i, j = np.arange(20)[:, None], np.arange(20)[None]
    always = (i < 2) | (j < 2) | (abs(i - j) <= 1)
    assert blocks[always].all()
    assert ((blocks & ~always)[2:].sum(axis=1) == 2).all()


def test_documents_behind_a_prefix():
    ids = np.repeat([0, 1, 2], [30, 170, 120])
    own = (ids[:, None] == ids) & (J <= I)
    assert np.array_equal(seen(block_patterns.prefix_and_documents(30, [170, 120], BLOCK)), own | (J < 30))


def test_vertical_slash_differs_by_head():
    mask = block_patterns.vertical_slash(N, [[0], [3, 7]], [[0, 1], [5]], BLOCK)
    heads = [(BJ == 0) | (BI - BJ <= 1), (BJ == 3) | (BJ == 7) | (BI - BJ == 5)]
    assert np.array_equal(seen(mask), np.stack(heads) & (J <= I))


def test_video_tiles_in_raster_order():
    tiles, tile, window = (2, 3, 5), (1, 4, 4), (1, 3, 3)
    order = tile_order(tiles, tile)
    size = tuple(n * m for n, m in zip(tiles, tile, strict=True))
    t, h, w = np.unravel_index(np.arange(math.prod(size)), size)
    wanted = True
    for position, side, n, width in zip((t, h, w), tile, tiles, window, strict=True):
        own = position // side
        first = np.clip(own - width // 2, 0, n - width)  # shifted inside
        wanted = wanted & (own >= first[:, None]) & (own < first[:, None] + width)
    assert np.array_equal(order[:BLOCK].reshape(4, 4), np.arange(4)[:, None] * size[2] + np.arange(4))
    raster = np.zeros_like(wanted)
    raster[order[:, None], order] = seen(block_patterns.video_tiles(tiles, window, BLOCK))
    assert np.array_equal(raster, wanted)


def test_a_window_of_tiles_as_wide_as_the_video_sees_all_of_it():
    assert block_patterns.video_tiles((2, 1, 4), (3, 3, 7), BLOCK).density == 1.0
    assert near_cube(64) == (4, 4, 4)
    assert sorted(near_cube(2 * 3 * 7)) == [2, 3, 7]


def test_the_gallery_prints_what_masks_save_and_draws_them(tmp_path, capsys):
    assert block_patterns.main(["--size", "1024", "--output", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name, mask in gallery(1024).items():
        (line,) = [line for line in printed.splitlines() if line.startswith(name)]
        assert f"{mask.stats()['density']:.3f}" in line
    assert "MORE" not in printed
    assert (tmp_path / "block_patterns.png").stat().st_size > 10_000


def test_the_gallery_fails_where_attention_is_wrong(tmp_path, capsys, monkeypatch):
    attention = flashcupy.attention

    def without_mask(q, k, v, block_mask=None):
        return attention(q, k, v)

    monkeypatch.setattr(flashcupy, "attention", without_mask)
    monkeypatch.setattr(block_patterns, "speedups", lambda masks, length, xp: dict.fromkeys(masks, 1.0))
    monkeypatch.setattr(block_patterns, "save_pictures", lambda masks, folder: folder)
    assert block_patterns.main(["--size", "1024", "--output", str(tmp_path)]) == 1
    assert f"MORE than float32 rounding explains: {', '.join(gallery(1024))}" in capsys.readouterr().out


# The task and its model

TASK = Task(passages=4, block=16)


def test_questions_ask_for_values_of_their_passage():
    tokens, values, asked = TASK.draw(3, np.random.default_rng(0))
    told, questions = np.split(tokens.reshape(3, 8, 16, -1), 2, axis=1)
    for b, block in np.ndindex(3, 4):
        passage = told[b, asked[b, block]]
        for token, value in zip(questions[b, block], values[b].reshape(4, 16)[block], strict=True):
            # What is asked for differs from the question in the value alone.
            answer = token - TASK.value[VALUES] + TASK.value[value]
            distance = abs(passage - answer).max(axis=1)
            assert np.sort(distance)[0] < 1e-5 < 0.1 < np.sort(distance)[1]


def test_gradients_are_those_of_finite_differences():
    rng = np.random.default_rng(0)
    model = RecallModel(np, np.float64, rng)
    tokens, values, _ = TASK.draw(2, rng)
    tokens = tokens.astype(np.float64)
    # The choice stands still, as it does in training: it has no gradient.
    mask = TopBlocks(TASK, 2, 2, np)(*model.queries_and_keys(tokens))
    model.loss_and_gradients(tokens, values, lambda q, k: mask)
    vector, gradient = model.parameters.vector, model.parameters.gradient_vector.copy()

    def loss_at(i, shift):
        before = vector[i]
        vector[i] += shift
        loss = model.loss_and_gradients(tokens, values, lambda q, k: mask)[0]
        vector[i] = before
        return loss

    h = 1e-4
    for i in rng.choice(vector.size, 8, replace=False):
        assert (loss_at(i, h) - loss_at(i, -h)) / (2 * h) == pytest.approx(gradient[i], rel=1e-5, abs=1e-8)
    assert abs(gradient).max() > 1e-2


def test_chosen_blocks_are_the_best_scored_of_each_group_of_heads():
    rng = np.random.default_rng(1)
    n, top_k = TASK.blocks, 3
    choose = TopBlocks(TASK, 2, top_k, np)
    address = choose.mask.full_indices.ctypes.data
    for _ in range(2):  # the second choice is written over the first
        q = rng.standard_normal((2, HEADS, TASK.length, 8), dtype=np.float32)
        k = rng.standard_normal((2, KV_HEADS, TASK.length, 8), dtype=np.float32)
        mask = choose(q, k)
        assert mask is choose.mask
        assert mask.full_indices.ctypes.data == address
        mean_q, mean_k = (x.reshape(2, KV_HEADS, -1, n, 16, 8).mean(axis=(2, 4)) for x in (q, k))
        scores = np.where(np.tri(n, dtype=bool), mean_q @ mean_k.swapaxes(-1, -2), -np.inf)
        scores[..., range(n), range(n)] = np.inf
        best = np.argsort(-scores, axis=-1)[..., :top_k]
        wanted = np.zeros_like(scores, bool)
        np.put_along_axis(wanted, best, True, axis=-1)
        assert np.array_equal(visited(mask, n), wanted & np.tri(n, dtype=bool))


def test_last_blocks_are_as_many_in_a_row_as_are_chosen():
    blocks = visited(last_blocks(TASK, 1, 3, np)(None, None), TASK.blocks)[0, 0]
    i, j = np.arange(8)[:, None], np.arange(8)[None]
    assert np.array_equal(blocks, (j <= i) & (j > i - 3))
    assert all_blocks(TASK, 1, 3, np)(None, None) is None


SMALL = ["--passages", "4", "--block", "16", "--top-k", "2"]


def compare(capsys, *options):
    assert block_topk.main([*SMALL, *options]) == 0
    lines = capsys.readouterr().out.splitlines()
    return {name: line.split()[-7:] for name in block_topk.CHOICES for line in lines if line.startswith(name)}


def test_the_experiment_prints_and_draws_what_came_of_each_choice(tmp_path, capsys):
    rows = compare(capsys, "--steps", "2", "--output", str(tmp_path))
    assert [float(row[0]) for row in rows.values()] == [0.562, 0.234, 0.234]
    assert rows["dense"][3:5] == ["1.00", "1.00"]
    assert all(float(row[5]) > 0 for row in rows.values())
    assert (tmp_path / "block_topk.png").stat().st_size > 10_000


@pytest.mark.slow
def test_chosen_blocks_learn_what_the_last_ones_cannot(tmp_path, capsys):
    rows = compare(capsys, "--batch", "4", "--steps", "30", "--output", str(tmp_path))
    accuracy, found, kept = ({name: float(row[i]) for name, row in rows.items()} for i in (2, 3, 4))
    assert accuracy["last k"] < 0.2 < 0.4 < min(accuracy["top-k"], accuracy["dense"])
    assert found["last k"] < 0.5 < found["top-k"]
    assert kept["last k"] < kept["top-k"] < 1.0


@pytest.mark.parametrize(
    ("main", "options", "message"),
    [
        (block_patterns.main, ("--size", "1000"), "--size must be a multiple of 512"),
        (block_patterns.main, ("--size", "512"), "at least 1024"),
        (block_patterns.main, ("--output", __file__), "is a file"),
        (block_patterns.main, ("--device", "tpu"), "invalid choice: 'tpu'"),
        (block_topk.main, ("--steps", "0"), "--steps must be at least 1"),
        (block_topk.main, ("--top-k", "0"), "--top-k must be at least 1"),
        (block_topk.main, ("--passages", "65"), "--passages must lie between 1 and 64"),
        (block_topk.main, ("--block", "48"), "invalid choice: 48"),
        (block_topk.main, ("--seed", "-1"), "--seed must not be negative"),
        (block_topk.main, ("--output", __file__), "is a file"),
    ],
)
def test_arguments_are_checked(main, options, message, capsys):
    with pytest.raises(SystemExit) as caught:
        main(list(options))
    assert caught.value.code == 2
    assert message in capsys.readouterr().err


@pytest.mark.gpu
def test_cupy_trains_as_numpy_does():
    import cupy

    arguments = block_topk.parse_arguments([*SMALL, "--steps", "5"])
    on_cpu, on_gpu = (block_topk.train(TopBlocks, TASK, arguments, xp, "top-k") for xp in (np, cupy))
    np.testing.assert_allclose(on_gpu.losses, on_cpu.losses, rtol=1e-3)
