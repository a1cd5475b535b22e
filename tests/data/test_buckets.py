import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pixelhdm.data.buckets import DROPPED, Buckets
from pixelhdm.errors import UserError

sides = st.integers(1, 65535)


def sizes(*pairs: tuple[int, int]) -> np.ndarray:
    return np.array(pairs, dtype=np.uint16)


def web_like(num: int) -> np.ndarray:
    """Width and height of images as the web has them: median short side 900 px."""
    random = np.random.default_rng(0)
    short = 900 * np.exp(0.549 * random.normal(size=num))
    long = short * np.exp(np.abs(0.3 * random.normal(size=num)))
    pairs = np.stack([short, long], axis=1)
    pairs = np.where(random.random((num, 1)) < 0.6, pairs[:, ::-1], pairs)
    return pairs.clip(1, 65535).astype(np.uint16)


@pytest.mark.parametrize(
    ("levels", "number"), [([1024], 25), ([1024, 512], 40), ([1024, 768, 512, 384, 256], 55)]
)
def test_tables_have_as_many_buckets_as_the_design_counts(levels, number):
    table = Buckets(levels=levels).table
    assert len(set(table)) == len(table) == number
    assert {(width, height) for height, width in table} == set(table)
    for height, width in table:
        assert height * width <= max(levels) ** 2
        assert height % 64 == width % 64 == 0
        assert 256 <= min(height, width) <= max(height, width) <= 1024


def test_the_table_of_one_level():
    assert Buckets(256, 512, 128, [512]).table == [
        (512, 512),
        (384, 512),
        (512, 384),
        (256, 512),
        (512, 256),
    ]


def test_max_aspect_takes_long_buckets_out():
    assert max(max(size) / min(size) for size in Buckets(max_aspect=2.0).table) == 2


def test_the_default_loses_nearly_nothing_of_a_web_like_set():
    one, default = Buckets(levels=[1024]), Buckets()
    found = web_like(50_000)
    assignment = default.assign(found)
    kept = assignment.bucket != DROPPED
    assert 1 - kept.mean() < 0.02
    assert (assignment.scale[kept] > 1).mean() < 0.02
    assert assignment.crop[kept].mean() < 0.06
    assert (one.assign(found).bucket == DROPPED).mean() > 0.3  # why one level fails


def slow(buckets: Buckets, width: int, height: int) -> tuple[int, float, float]:
    """The rule in plain words and whole numbers."""
    found = []
    for number, (h, w) in enumerate(buckets.table):
        scale = max(w / width, h / height)
        crop = round(1 - min(w * height / (h * width), h * width / (w * height)), 9)
        found.append((number, scale, crop, h * w))
    fitting = [one for one in found if one[1] <= buckets.max_upscale]
    good = [one for one in fitting if one[2] <= buckets.max_crop]
    if good:
        best = max(good, key=lambda one: (one[3], -one[2], -one[0]))
    elif fitting:
        best = min(fitting, key=lambda one: (one[2], one[0]))
    elif buckets.too_small == "upscale":
        best = min(found, key=lambda one: (one[1], one[2], one[0]))
    else:
        return DROPPED, 0.0, 0.0
    return best[:1] + best[2:0:-1]


@settings(deadline=None, max_examples=300)
@given(
    st.lists(st.tuples(sides, sides), min_size=1, max_size=20),
    st.sampled_from([1.0, 1.3, 2.0]),
    st.sampled_from([0.0, 0.04, 0.08, 0.5]),
    st.sampled_from(["drop", "upscale"]),
)
def test_images_go_where_the_rule_says(pairs, max_upscale, max_crop, too_small):
    buckets = Buckets(max_upscale=max_upscale, max_crop=max_crop, too_small=too_small)
    result = buckets.assign(sizes(*pairs))
    for (width, height), number, crop, scale in zip(pairs, *result, strict=True):
        expected, crop_expected, scale_expected = slow(buckets, width, height)
        if number != expected:  # equal to the last digits: either is right
            assert number != DROPPED != expected
            assert crop == pytest.approx(crop_expected, abs=1e-6)
            assert scale == pytest.approx(scale_expected, rel=1e-6)
        elif number != DROPPED:
            assert crop == pytest.approx(crop_expected, abs=1e-6)
            assert scale == pytest.approx(scale_expected, rel=1e-6)


def test_an_image_of_a_buckets_size_goes_there_uncut():
    buckets = Buckets()
    result = buckets.assign(sizes(*((width, height) for height, width in buckets.table)))
    assert result.bucket.tolist() == list(range(len(buckets.table)))
    assert (result.crop == 0).all()
    assert (result.scale == 1).all()


def test_one_square_takes_every_image():
    result = Buckets.square(256).assign(sizes((1, 9), (5000, 300), (256, 256)))
    assert result.bucket.tolist() == [0, 0, 0]
    assert Buckets.square(256).takes_all
    assert not Buckets(sizes=[(256, 256)]).takes_all


def test_an_unreadable_image_is_dropped_even_where_all_are_taken():
    assert Buckets.square(8).assign(sizes((0, 0), (8, 8))).bucket.tolist() == [DROPPED, 0]
    assert Buckets(too_small="error").assign(sizes((0, 0))).bucket.tolist() == [DROPPED]


def test_no_images():
    assert len(Buckets().assign(np.zeros((0, 2), dtype=np.uint16)).bucket) == 0


def test_too_small_may_be_an_error():
    with pytest.raises(UserError, match=r"got 1 that do not, the first of 200x255 .* too_small"):
        Buckets(too_small="error").assign(sizes((256, 256), (255, 200)))


def test_digest_tells_tables_and_rules_apart():
    kinds = [
        Buckets(),
        Buckets(max_crop=0.1),
        Buckets(max_upscale=1.1),
        Buckets(too_small="upscale"),
        Buckets(step=128),
        Buckets.square(256),
        Buckets.square(512),
    ]
    assert len({buckets.digest() for buckets in kinds}) == len(kinds)
    assert Buckets(sizes=Buckets().table).digest() == Buckets().digest()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"min_side": 0}, "min_side must be at least 1, got 0"),
        ({"step": 0}, "step must be at least 1, got 0"),
        ({"step": 100}, "multiples of step=100"),
        ({"min_side": 1024, "max_side": 512}, "multiples of step=64 in this order"),
        ({"levels": [128]}, "levels must leave room"),
        ({"levels": []}, "levels must leave room"),
        ({"max_aspect": 0.5}, "max_aspect must be at least 1, got 0.5"),
        ({"max_upscale": 0.0}, "max_upscale must be above 0, got 0"),
        ({"max_upscale": math.nan}, "max_upscale must be above 0, got nan"),
        ({"max_crop": 1.1}, "max_crop must lie in 0 … 1, got 1.1"),
        ({"sizes": []}, "sizes must be different pairs"),
        ({"sizes": [(8, 8), (8, 8)]}, "sizes must be different pairs"),
        ({"sizes": [(0, 8)]}, "sizes must be different pairs"),
    ],
)
def test_wrong_arguments(arguments, words):
    with pytest.raises(UserError, match=words):
        Buckets(**arguments)
