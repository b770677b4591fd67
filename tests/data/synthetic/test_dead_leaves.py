"""Dead leaves: images with the statistics of photos, made by code."""

from pathlib import Path

import numpy as np
import pytest

from data.files.images import read_image
from data.synthetic.clips import SyntheticConfig, render_clip
from data.synthetic.dead_leaves import DeadLeavesConfig, draw_dead_leaves
from tools.prepare_data import main


def test_the_spectrum_falls_as_that_of_photos() -> None:
    """Power falls with about the square of the frequency: white noise has slope 0, a blurred blob far below -3."""
    config = DeadLeavesConfig(height=256, width=256)
    power = np.zeros((256, 256))
    for seed in range(4):
        gray = draw_dead_leaves(config, np.random.default_rng(seed)).mean(-1)
        window = np.hanning(256)
        power += np.abs(np.fft.fft2((gray - gray.mean()) * np.outer(window, window))) ** 2
    frequency = np.hypot(*np.meshgrid(np.fft.fftfreq(256), np.fft.fftfreq(256)))
    used = (frequency > 4 / 256) & (frequency < 0.15)  # above, the lens blurs
    slope = np.polyfit(np.log(frequency[used]), np.log(power[used]), 1)[0]
    assert -3 < slope < -1.5


def test_images_are_written_and_texture_clips(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "leaves"
    command = ["synthesize", "dead_leaves", "--root", str(root), "--size", "64x96", "images=3", "seed=1"]
    assert main(command) == 0
    assert [path.name for path in sorted(root.iterdir())] == ["0000.jpg", "0001.jpg", "0002.jpg"]
    assert read_image(root / "0000.jpg").shape == (64, 96, 3)
    assert "3 images, 64x96" in capsys.readouterr().out
    clip = render_clip(SyntheticConfig(height=64, width=96, textures=root, cue=0), 0)
    assert clip.frames.std() > 10


def test_an_image_depends_on_seed_and_index_alone() -> None:
    config = DeadLeavesConfig(height=64, width=96)
    one, same, other = (draw_dead_leaves(config, np.random.default_rng([0, index])) for index in (0, 0, 1))
    assert np.array_equal(one, same)
    assert not np.array_equal(one, other)
