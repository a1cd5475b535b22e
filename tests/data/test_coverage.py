import numpy as np

from pixelhdm.data.buckets import Buckets
from pixelhdm.data.coverage import coverage_table


def table(buckets: Buckets, *sizes: tuple[int, int], batch: int = 2, world: int = 1) -> str:
    found = np.array(sizes, dtype=np.uint16)
    assignment = buckets.assign(found)
    batches = [batch] * len(buckets.table)
    return "\n".join(coverage_table(buckets, found, assignment, batches, world))


def test_a_row_tells_what_a_bucket_gets():
    text = table(Buckets(), (1024, 1024), (1100, 1024), (1100, 1090), (100, 300), (0, 0), world=2)
    rows = [line.split() for line in text.splitlines() if line.startswith("   1024 x 1024")]
    assert rows == [["1024", "x", "1024", "3", "100.0%", "1", "4", "1", "2.6%", "6.8%", "0.0%"]]
    assert "3 of 5 images, 1 batch an epoch, 1 padded slot" in text
    assert (
        "dropped: 1 (20.0%) too small for any bucket without being enlarged by more than 1" in text
    )
    assert "dropped: 1 whose size cannot be read" in text
    assert "advice: buckets.levels" in text


def test_only_buckets_with_images_have_rows_and_rare_ones_are_named():
    text = table(Buckets(), *[(1024, 1024)] * 4, (512, 1024))
    assert len([line for line in text.splitlines() if " x " in line]) == 3  # with the head
    assert "1 bucket holds less than one batch (1024x512); the rest of it is padding" in text


def test_enlarged_and_cut_images_are_counted():
    text = table(Buckets(max_upscale=2.0), (512, 512), (600, 2900))
    assert "50.0% enlarged; 50.0% cut by more than 8%, as no bucket suits them better" in text
    assert "cut by more" not in table(Buckets.square(8), (8, 9))


def test_no_image_at_all_is_told_too():
    assert "0 of 2 images, 0 batches an epoch" in table(Buckets(), (10, 10), (20, 20))


def test_buckets_that_suit_few_images_bring_advice():
    text = table(Buckets(step=256), (1024, 1100), (1024, 1160), batch=1)
    assert "50.0% cut by more than 8%" in text
    assert "advice: a smaller buckets.step has shapes nearer to theirs" in text
    assert "less than one batch" not in text
