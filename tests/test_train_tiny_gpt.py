"""The training example: its gradients, its optimiser, its checkpoints, and that it learns."""

from __future__ import annotations

import json
import sys
from types import SimpleNamespace

import numpy as np
import pytest
from oracles import oracle

try:
    import train_tiny_gpt
    from adamw import AdamW, clip, learning_rate
    from tiny_gpt import Config, TinyGPT, sample
    from tiny_gpt_run import Run, Settings, Text, default_text
except SystemExit as error:  # an example without its packages says so and ends
    pytest.skip(str(error), allow_module_level=True)

EPS = np.finfo(np.float64).eps
SIZES = "--length 32 --layers 1 --d-model 64 --heads 2 --kv-heads 1 --batch 4 --learning-rate 0.01 --characters 20"
SMALL = SIZES.split()


def float64_model():
    """A model with weights of order 1, so that no gradient is small enough to hide an error, and a batch."""
    rng = np.random.default_rng(0)
    config = Config(vocabulary=11, length=7, layers=2, d_model=8, heads=2, kv_heads=1)
    model = TinyGPT(config, np, np.float64, rng)
    model.parameters.vector[:] = rng.normal(0, 0.5, model.parameters.vector.size)
    ids, targets = rng.integers(0, 11, (2, 2, 7))
    return model, ids, targets


PARAMETERS = list(float64_model()[0].parameters.values)


@pytest.mark.parametrize("name", PARAMETERS)
def test_gradients_are_those_of_finite_differences(name):
    model, ids, targets = float64_model()
    loss = model.loss_and_gradients(ids, targets)
    entries, gradient = model.parameters.values[name].reshape(-1), model.parameters.gradients[name].reshape(-1)

    def loss_at(i, shift):
        before = entries[i]
        entries[i] += shift
        shifted = model.loss(ids, targets)
        entries[i] = before
        return shifted

    # Truncation falls as h^4, rounding grows as eps / h: this h makes both of order eps^(4/5), 3e-13.
    h = EPS**0.2
    for i in np.random.default_rng(1).choice(entries.size, min(4, entries.size), replace=False):
        near, far = (loss_at(i, n * h) - loss_at(i, -n * h) for n in (1, 2))
        assert abs((8 * near - far) / (12 * h) - gradient[i]) <= 32 * EPS**0.8 * loss
    assert abs(gradient).max() > 1e-3  # of which that bound is less than a ten-millionth


def test_gradients_do_not_depend_on_those_before():
    model, ids, targets = float64_model()
    model.loss_and_gradients(targets, ids)
    model.loss_and_gradients(ids, targets)
    again = model.parameters.gradient_vector.copy()
    fresh, *_ = float64_model()
    fresh.loss_and_gradients(ids, targets)
    assert np.array_equal(again, fresh.parameters.gradient_vector)


def test_no_character_sees_what_follows():
    model, ids, _ = float64_model()
    changed = ids.copy()
    changed[:, 4:] = (changed[:, 4:] + 1) % 11
    before, after = (model.hidden(x)[0] for x in (ids, changed))
    assert np.array_equal(before[:, :4], after[:, :4])
    assert (before[:, 4:] != after[:, 4:]).any(axis=-1).all()


def test_adamw_and_clipping_are_torchs():
    torch = oracle("torch")
    rng = np.random.default_rng(0)
    ours = rng.standard_normal(50)
    matrices, vectors = (torch.nn.Parameter(torch.tensor(part)) for part in (ours[:30], ours[30:]))
    groups = [{"params": [matrices], "weight_decay": 0.1}, {"params": [vectors], "weight_decay": 0.0}]
    theirs = torch.optim.AdamW(groups, betas=(0.9, 0.99), eps=1e-8)
    optimizer = AdamW(ours, 30, np)
    for step in range(20):
        gradient = rng.standard_normal(50) * 10.0 ** rng.uniform(-3, 1)
        matrices.grad, vectors.grad = (torch.tensor(part) for part in (gradient[:30], gradient[30:]))
        torch.nn.utils.clip_grad_norm_([matrices, vectors], 1.0)
        for group in theirs.param_groups:
            group["lr"] = learning_rate(step, 20, 0.1)
        theirs.step()
        clip(gradient, 1.0, np)
        optimizer.update(gradient, learning_rate(step, 20, 0.1))
        expected = torch.cat([matrices, vectors]).detach().numpy()
        # a handful of roundings a step, which go on into the next
        np.testing.assert_allclose(ours, expected, rtol=0, atol=8 * (step + 1) * EPS * abs(expected).max())


def test_learning_rate_rises_to_its_peak_and_falls_to_a_tenth():
    rates = [learning_rate(step, 1000, 1.0) for step in range(1001)]
    assert rates[0] == 0.01
    assert rates[99] == rates[100] == 1.0
    assert rates[1000] == pytest.approx(0.1)
    assert np.array_equal(rates[:100], sorted(rates[:100]))
    assert np.array_equal(rates[100:], sorted(rates[100:], reverse=True))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "text.txt"
    path.write_text(default_text().characters[:5_000], encoding="utf-8")
    return path


@pytest.fixture
def no_picture(monkeypatch):
    """Spare tests of something else the time that drawing takes."""
    monkeypatch.setattr(train_tiny_gpt, "save_loss_curve", lambda run, picture: picture)


def train(file, output, *options):
    assert train_tiny_gpt.main(["--file", str(file), "--output", str(output), *SMALL, *options]) == 0
    with np.load(output / "tiny_gpt.npz") as arrays:
        return {name: arrays[name] for name in arrays.files}


def test_training_learns_more_than_how_frequent_characters_are(file, tmp_path, capsys):
    checkpoint = train(file, tmp_path / "out", "--steps", "60")
    (_, before), *_, (_, after) = json.loads(checkpoint["state"].item())["validations"]
    text = Text("text", file.read_text(encoding="utf-8"))
    assert before == pytest.approx(np.log(len(text.vocabulary)), rel=0.05)
    assert after < text.entropy
    printed = capsys.readouterr().out
    assert f"validation loss: {before:.3f} before, {after:.3f} after" in printed
    for name in ("tiny_gpt.npz", "tiny_gpt_loss.png"):
        assert (tmp_path / "out" / name).stat().st_size > 10_000
        assert str(tmp_path / "out" / name) in printed
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_a_resumed_run_is_the_uninterrupted_one(file, tmp_path, no_picture, monkeypatch, capsys):
    whole = train(file, tmp_path / "whole", "--steps", "20")
    written = capsys.readouterr().out.split("---")[1]

    train_step = Run._train_step

    def interrupted(run):
        if run.step == 13:
            raise KeyboardInterrupt
        return train_step(run)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "_train_step", interrupted)
        with pytest.raises(SystemExit, match=r"stopped at step 13, --resume goes on from step 10"):
            train(file, tmp_path / "parts", "--steps", "20")
    parts = train(file, tmp_path / "parts", "--steps", "20", "--resume")
    assert whole.keys() == parts.keys()
    for name, array in whole.items():
        assert np.array_equal(array, parts[name]), name
    assert capsys.readouterr().out.split("---")[1] == written

    # With nothing left to train, it writes again.
    train(file, tmp_path / "parts", "--steps", "20", "--resume")
    printed = capsys.readouterr().out
    assert printed.split("---")[1] == written
    assert "nothing was left to train" in printed


def test_a_checkpoint_that_is_not_finished_leaves_the_one_before(file, tmp_path, no_picture, monkeypatch):
    before = train(file, tmp_path, "--steps", "1")

    def interrupted(stream, **arrays):
        stream.write(b"PK")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez", interrupted)
        with pytest.raises(SystemExit, match="stopped at step 1, before the first checkpoint"):
            train(file, tmp_path, "--steps", "1")
    after = train(file, tmp_path, "--steps", "1", "--resume")
    assert all(np.array_equal(after[name], array) for name, array in before.items())


def test_generated_text_depends_on_the_seed_alone():
    model, *_ = float64_model()

    def generate(seed, temperature=1.0, top_k=11, count=20):
        return sample(model, [3], count, temperature, top_k, np.random.default_rng(seed))

    assert generate(0) == generate(0)
    assert generate(0) != generate(1)
    assert set(generate(0)) <= set(range(11))
    likeliest = generate(0, temperature=0)
    assert likeliest[0] == np.argmax(model.next_logits(np.array([3])))
    assert likeliest == generate(1, temperature=0) == generate(2, top_k=1)
    assert generate(0, count=0) == []


def refused(*options):
    with pytest.raises(SystemExit) as caught:
        train_tiny_gpt.main(list(options))
    return caught.value.code


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--device", "tpu"), "invalid choice: 'tpu'"),
        (("--steps", "0"), "--steps must be at least 1"),
        (("--kv-heads", "3"), "--heads a multiple of --kv-heads"),
        (("--d-model", "30"), "--d-model must be a multiple of --heads"),
        (("--learning-rate", "nan"), "--learning-rate must be positive"),
        (("--temperature", "-1"), "--temperature must be finite"),
        (("--characters", "-1"), "--characters must not be negative"),
        (("--output", __file__), "is a file"),
    ],
)
def test_arguments_are_checked(options, message, capsys):
    assert refused(*options) == 2
    assert message in capsys.readouterr().err


def test_files_are_checked(tmp_path):
    file = tmp_path / "text"
    assert "cannot be read as UTF-8 text" in refused("--file", str(file))
    file.write_bytes(b"\xff" * 5000)
    assert "cannot be read as UTF-8 text" in refused("--file", str(file))
    file.write_text("short")
    assert refused("--file", str(file)) == "text has 5 characters, and sequences of 128 need at least 1290"
    file.write_text("ab" * 645)
    assert "the prompt has 'c' in it" in refused("--file", str(file), "--prompt", "abc", "--output", str(tmp_path))


def test_checkpoints_are_checked(file, tmp_path, no_picture):
    common = ("--file", str(file), "--output", str(tmp_path), *SMALL)
    assert "there is no checkpoint" in refused(*common, "--resume")
    (tmp_path / "tiny_gpt.npz").write_text("not one")
    assert "is not a checkpoint of this example" in refused(*common, "--resume")
    train(file, tmp_path, "--steps", "1")
    assert "is a checkpoint of --steps 1" in refused(*common, "--steps", "2", "--resume")
    file.write_text(file.read_text(encoding="utf-8") + "!", encoding="utf-8")
    assert "is a checkpoint of another text" in refused(*common, "--steps", "1", "--resume")


def test_without_cupy_or_a_gpu_the_message_says_so(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    assert "pip install 'flashcupy[cuda12]'" in refused("--device", "cuda")

    class CUDARuntimeError(Exception):
        pass

    def count():
        raise CUDARuntimeError("no CUDA-capable device is detected")

    runtime = SimpleNamespace(getDeviceCount=count, CUDARuntimeError=CUDARuntimeError)
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(cuda=SimpleNamespace(runtime=runtime)))
    assert "needs an NVIDIA GPU and its driver: no CUDA-capable" in refused("--device", "cuda")


@pytest.mark.gpu
def test_cupy_trains_as_numpy_does():
    import cupy

    text = Text("text", default_text().characters[:20_000])
    settings = Settings(text.digest, 5, 2, 32, 2, 32, 4, 2, 1e-3, 0)
    on_cpu, on_gpu = (Run(settings, text, xp) for xp in (np, cupy))
    for run in (on_cpu, on_gpu):
        run.train_until(5, lambda: None)
    # Losses near 4.5 that float32 rounding moves in the sixth digit; a wrong gradient changes the second one.
    np.testing.assert_allclose(on_gpu.losses, on_cpu.losses, rtol=1e-4)
