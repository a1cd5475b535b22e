import io
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from pixelhdm.data.source import BadSample
from pixelhdm.data.views import View
from pixelhdm.errors import UserError


def png(width: int, height: int) -> bytes:
    """A picture whose red tells the column and whose green the row."""
    pixels = np.zeros((height, width, 3), dtype=np.uint8)
    pixels[..., 0], pixels[..., 1] = np.arange(width)[None], np.arange(height)[:, None]
    out = io.BytesIO()
    Image.fromarray(pixels).save(out, "PNG")
    return out.getvalue()


def test_random_crops_reach_every_place_evenly():
    view, data = View(crop="random"), png(24, 8)
    places = Counter(int(view.image(data, seed, 8, 8)[0, 0, 0]) for seed in range(4000))
    assert set(places) == set(range(17))
    inner = [places[place] for place in range(1, 16)]
    assert 180 < min(inner) <= max(inner) < 325  # 250 each, five standard deviations


def test_the_centre_is_the_same_for_all_seeds():
    images = [View().image(png(24, 8), seed, 8, 8) for seed in range(5)]
    assert all(np.array_equal(image, images[0]) for image in images)
    assert images[0][0, 0, 0] == 8


def test_flips_and_crops_and_captions_are_independent():
    view, data = View(flip_prob=0.5, crop="random"), png(24, 8)
    found = []
    for seed in range(2000):
        row = view.image(data, seed, 8, 8)[0, :, 0].astype(int)
        found.append((row[0] > row[-1], min(row) > 8, view.caption(2, seed) == 1))
    assert np.abs(np.corrcoef(np.transpose(found)) - np.eye(3)).max() < 0.12


def test_captions_are_equally_likely():
    counts = Counter(View().caption(3, seed) for seed in range(3000))
    assert sorted(counts) == [0, 1, 2]
    assert all(850 < times < 1150 for times in counts.values())


def test_another_size_than_expected_is_a_bad_sample():
    with pytest.raises(BadSample, match="size: 24x8 pixels, 8x24 in the index"):
        View().image(png(24, 8), 0, 8, 8, size=(8, 24))


@pytest.mark.parametrize("value", [-0.1, 1.1])
def test_wrong_flip_prob(value):
    with pytest.raises(UserError, match=f"flip_prob must lie in 0 … 1, got {value}"):
        View(flip_prob=value)


@pytest.mark.parametrize(("num", "expected"), [(3, [0.6, 0.3, 0.1]), (2, [2 / 3, 1 / 3]), (1, [1])])
def test_captions_have_their_probabilities_and_keep_their_ratios(num, expected):
    view = View(caption_probs=[6, 3, 1])
    counts = Counter(view.caption(num, seed) for seed in range(3000))
    assert sorted(counts) == list(range(num))
    for number, prob in enumerate(expected):
        assert counts[number] / 3000 == pytest.approx(prob, abs=0.03)


def test_a_caption_beyond_the_probabilities_is_never_taken():
    view = View(caption_probs=[1, 1])
    assert {view.caption(5, seed) for seed in range(200)} == {0, 1}


@pytest.mark.parametrize("probs", [[], [0.5, 0.0], [1.0, -1.0], [float("nan")]])
def test_wrong_probabilities_are_one_sentence(probs):
    with pytest.raises(UserError, match="caption_probs must be numbers above 0"):
        View(caption_probs=probs)
