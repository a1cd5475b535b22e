import json
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm.data.image_folder import ImageFolder
from pixelhdm.data.mix import Mix
from pixelhdm.errors import UserError
from pixelhdm.evaluation.moments import Moments
from pixelhdm.evaluation.reference import (
    Reference,
    read_references,
    references_of,
    write_references,
)
from pixelhdm.evaluation.walk import Walk
from tests.stubs import ColourFeatures, Numbers, randn

CPU = torch.device("cpu")


def real_images(num: int = 40) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (num, 8, 8, 3)).astype(np.uint8)


def features_of(extractor: ColourFeatures, images: np.ndarray):
    return extractor(torch.from_numpy(images))


def reference_of(extractor: ColourFeatures, num_kept: int = 15) -> Reference:
    features = features_of(extractor, real_images())
    spatial = None if features.spatial is None else Moments.of(features.spatial)
    kept = (None if own is None else own[:num_kept] for own in features)
    return Reference(Moments.of(features.pool), spatial, *kept)


def adm_file(folder: Path, extractor: ColourFeatures, num_images: int = 30) -> Path:
    """A file with the arrays of ADM's VIRTUAL_imagenet256_labeled.npz."""
    features = features_of(extractor, real_images())
    file = folder / "adm.npz"
    np.savez(
        file,
        mu=features.pool.double().numpy().mean(0),
        sigma=np.cov(features.pool.numpy(), rowvar=False),
        mu_s=features.spatial.double().numpy().mean(0),
        sigma_s=np.cov(features.spatial.numpy(), rowvar=False),
        arr_0=real_images()[:num_images],
        arr_1=np.arange(num_images),
    )
    return file


def test_a_file_gives_its_references_back(tmp_path):
    extractors = [
        ColourFeatures("inception", "inception"),
        ColourFeatures("plain", "other"),
        ColourFeatures("clip", "clip"),
    ]
    references = {own.key: reference_of(own) for own in extractors}
    file = tmp_path / "real.npz"
    write_references(file, extractors, references, {"data": "none"}, real_images(15))
    found = read_references(file, extractors, CPU)
    for key, reference in references.items():
        for own, expected in zip(found[key], reference, strict=True):
            if isinstance(expected, Moments):
                assert own.num == expected.num
                torch.testing.assert_close(own.mean, expected.mean, rtol=0, atol=0)
                torch.testing.assert_close(own.scatter, expected.scatter)
            else:
                assert own is expected is None or own.equal(expected)
    assert list(tmp_path.iterdir()) == [file]


def test_adms_evaluator_finds_its_arrays_in_our_file(tmp_path):
    extractor = ColourFeatures("inception", "inception")
    reference, file = reference_of(extractor), tmp_path / "real.npz"
    images = real_images(15)
    write_references(file, [extractor], {"inception": reference}, {}, images)
    with np.load(file, allow_pickle=False) as arrays:
        np.testing.assert_array_equal(arrays["mu"], reference.moments.mean)
        np.testing.assert_array_equal(arrays["sigma"], reference.moments.cov)
        np.testing.assert_array_equal(arrays["sigma_s"], reference.spatial.cov)
        np.testing.assert_array_equal(arrays["arr_0"], images)
        assert json.loads(str(arrays["facts"]))["extractors"]["inception"]["label"] == "Colours"


def test_features_of_other_weights_or_resize_are_refused(tmp_path):
    extractor, file = ColourFeatures(), tmp_path / "real.npz"
    write_references(file, [extractor], {extractor.key: reference_of(extractor)}, {})
    other = ColourFeatures()
    other.resize = "bicubic to 4"
    with pytest.raises(UserError, match=r"resize of now \(\w{16}, bicubic to 4\), got .*none\)"):
        read_references(file, [other], CPU)


def test_adms_file_is_read_with_its_images_looked_at_once(tmp_path):
    extractor = ColourFeatures("inception", "inception", is_published=True)
    file = adm_file(tmp_path, extractor)
    found = read_references(file, [extractor], CPU, batch_size=7)["inception"]
    everything = features_of(extractor, real_images())
    assert found.moments.num is None
    torch.testing.assert_close(found.moments.cov, Moments.of(everything.pool).cov)
    torch.testing.assert_close(found.spatial.mean, Moments.of(everything.spatial).mean)
    assert not found.features.equal(everything.pool[:30])  # in random order
    torch.testing.assert_close(found.features.sort(dim=0)[0], everything.pool[:30].sort(dim=0)[0])
    assert (len(found.logits), len(found.spatial_features)) == (30, 30)

    extractor.network = None
    extractor.read = lambda: pytest.fail("the features lie beside the file")
    again = read_references(file, [extractor], CPU)["inception"]
    assert again.features.equal(found.features)
    assert again.logits.equal(found.logits)


def test_features_beside_a_file_are_not_those_of_other_images(tmp_path):
    extractor = ColourFeatures("inception", "inception", is_published=True)
    read_references(adm_file(tmp_path, extractor), [extractor], CPU)
    found = read_references(adm_file(tmp_path, extractor, 20), [extractor], CPU)["inception"]
    assert len(found.features) == 20


def test_another_extractor_takes_all_from_the_images(tmp_path):
    file = adm_file(tmp_path, ColourFeatures("inception"))
    extractor = ColourFeatures("plain", "other")
    found = read_references(file, [extractor], CPU)["other"]
    expected = Moments.of(features_of(extractor, real_images()[:30]).pool)
    assert found.moments.num == 30
    torch.testing.assert_close(found.moments.cov, expected.cov)
    assert found.spatial is found.logits is None


def test_jits_file_gives_moments_alone(tmp_path):
    extractor = ColourFeatures("inception", "inception", is_published=True)
    moments, file = reference_of(extractor).moments, tmp_path / "jit_in256_stats.npz"
    np.savez(file, mu=moments.mean.float(), sigma=moments.cov.float())
    found = read_references(file, [extractor], CPU)["inception"]
    torch.testing.assert_close(found.moments.cov, moments.cov, rtol=1e-5, atol=1e-6)
    assert found[1:] == (None, None, None, None)


@pytest.mark.parametrize(
    ("arrays", "extractor", "message"),
    [
        ({"mu": np.zeros(30)}, ColourFeatures("inception"), "must hold statistics of Colours, got"),
        ({"mu": np.zeros(30), "sigma": np.eye(30)}, ColourFeatures(), "stats --extractors"),
        (
            {"mu": np.zeros(30), "sigma": np.eye(30)},
            ColourFeatures("inception"),
            "must be the published FID's",
        ),
        (
            {"mu": np.zeros(768), "sigma": np.eye(768)},
            ColourFeatures("inception", is_published=True),
            r"must be 30 and 30x30 numbers for Colours, got \(768,\) and \(768, 768\)",
        ),
        (
            {"mu": np.full(30, np.nan), "sigma": np.eye(30)},
            ColourFeatures("inception", is_published=True),
            "mu and sigma of a reference must be finite, got NaN .* in .*foreign.npz. Make it agai",
        ),
        (
            {"mu": np.full(30, "one"), "sigma": np.eye(30)},
            ColourFeatures("inception", is_published=True),
            "must be real numbers, got <U3 and float64 in .*foreign.npz. Make it again",
        ),
        (
            {"mu": np.zeros(30, complex), "sigma": np.eye(30)},
            ColourFeatures("inception", is_published=True),
            "must be real numbers, got complex128",
        ),
        (
            {"mu": np.zeros(30), "sigma": -np.eye(30)},
            ColourFeatures("inception", is_published=True),
            "got negative variances in .*foreign.npz. Make it again with main.py stats",
        ),
        (
            {"mu": np.zeros(30), "sigma": np.triu(np.ones((30, 30)))},
            ColourFeatures("inception", is_published=True),
            "symmetric covariance, got another matrix in .*foreign.npz",
        ),
        (
            {"mu": np.zeros(30), "sigma": np.eye(30), "mu_s": np.zeros(()), "sigma_s": np.eye(2)},
            ColourFeatures("inception", is_published=True),
            "mu_s and sigma_s of a reference must be 1 and 1x1 numbers",
        ),
        ({"facts": np.array("[1]")}, ColourFeatures(), "facts .* got a list in .*foreign.npz"),
        ({"facts": np.array("{")}, ColourFeatures(), "got a text that is no JSON"),
        ({"facts": np.array('{"extractors": []}')}, ColourFeatures(), "extractors without names"),
        (
            {"facts": np.array('{"extractors": {"colours": {"resize": "none"}}}')},
            ColourFeatures(),
            "got no digest of Colours in .*foreign.npz. Make it again with main.py stats",
        ),
        ({"facts": np.array('{"extractors": {"colours": 1}}')}, ColourFeatures(), "got no digest"),
        *(
            (
                {"arr_0": np.zeros((num, 4, 4, 3), np.uint8)},
                ColourFeatures(),
                f"arr_0 of a reference must be at least 2 images, got {num} in .*foreign.npz. Make",
            )
            for num in (0, 1)
        ),
        (
            {"arr_0": np.zeros((5, 4, 4, 3), np.uint8, order="F")},
            ColourFeatures(),
            "must lie row by row, got Fortran's order in .*foreign.npz. Save it again",
        ),
        ({"arr_0": np.zeros((5, 4, 4, 3))}, ColourFeatures(), "uint8 of N H W 3, got float64 of 5"),
        ({"arr_0": np.array([{}])}, ColourFeatures(), "cannot be read"),
        (
            {"mu": np.array([{}]), "sigma": np.eye(3)},
            ColourFeatures("inception", is_published=True),
            "cannot be read",
        ),
    ],
)
def test_a_file_that_does_not_serve_is_refused_in_a_sentence(tmp_path, arrays, extractor, message):
    np.savez(tmp_path / "foreign.npz", **arrays)
    with pytest.raises(UserError, match=message):
        read_references(tmp_path / "foreign.npz", [extractor], CPU)


@pytest.mark.parametrize("change", [{"num_images": 1}, {"digest": None}])
def test_facts_that_do_not_serve_are_refused(tmp_path, change):
    extractor, file = ColourFeatures(), tmp_path / "real.npz"
    write_references(file, [extractor], {extractor.key: reference_of(extractor)}, {})
    with np.load(file) as arrays:
        kept = dict(arrays)
    facts = json.loads(str(kept["facts"]))
    facts["extractors"]["colours"] |= change
    np.savez(file, **kept | {"facts": np.array(json.dumps(facts))})
    with pytest.raises(UserError, match=r"at least 2 images, got 1 in|got no digest of Colours"):
        read_references(file, [extractor], CPU)
    for broken, words in (
        (
            {"colours/features": np.zeros(5, np.float32)},
            "must be rows of float32, got float32 of 5",
        ),
        ({"colours/mu": np.zeros(4)}, "must be 30 and 30x30 numbers"),
    ):
        facts["extractors"]["colours"] |= {"num_images": 40, "digest": extractor.digest()}
        np.savez(file, **kept | {"facts": np.array(json.dumps(facts))} | broken)
        with pytest.raises(UserError, match=words):
            read_references(file, [extractor], CPU)
    del kept["colours/sigma"]
    np.savez(file, **kept)
    with pytest.raises(UserError, match="must both be there, got 1 in"):
        read_references(file, [extractor], CPU)


def test_a_reference_of_another_size_is_refused_where_the_file_tells(tmp_path):
    own, file = ColourFeatures("inception", "inception", is_published=True), tmp_path / "real.npz"
    write_references(file, [own], {own.key: reference_of(own)}, {"height": 32, "width": 16})
    assert read_references(file, [own], CPU, (32, 16))
    words = r"drawn size, 16x32, got .*real.npz of 32x16. Draw at .* --data.draw.height=32 "
    with pytest.raises(UserError, match=words):
        read_references(file, [own], CPU, (16, 32))
    foreign = adm_file(tmp_path, own)
    assert read_references(foreign, [own], CPU, (8, 8))
    with pytest.raises(UserError, match=r"4x4, got .*adm.npz of 8x8"):
        read_references(foreign, [own], CPU, (4, 4))
    jit = tmp_path / "jit.npz"
    np.savez(jit, mu=np.zeros(30), sigma=np.eye(30))
    assert read_references(jit, [own], CPU, (4, 4))  # it does not tell


def test_features_beside_a_file_are_told_of_and_torn_or_left_ones_made_again(tmp_path, capsys):
    extractor = ColourFeatures("inception", "inception", is_published=True)
    file = adm_file(tmp_path, extractor)
    first = read_references(file, [extractor], CPU)["inception"]
    (cache,) = tmp_path.glob("adm.inception-*.npz")
    assert f"are kept in {cache} for next time" in capsys.readouterr().out
    cache.write_bytes(cache.read_bytes()[:-100])
    old, fresh = (tmp_path / f".{cache.name}.{number}.part" for number in (1, 2))
    for left in (old, fresh):
        left.write_bytes(b"")
    os.utime(old, (0, 0))
    again = read_references(file, [extractor], CPU)["inception"]
    assert again.features.equal(first.features)
    assert not old.exists()
    assert fresh.exists()  # another process may be writing it
    capsys.readouterr()
    read_references(file, [extractor], CPU)
    assert capsys.readouterr().out == ""


def test_what_is_no_whole_file_is_refused(tmp_path):
    extractor = ColourFeatures("inception", "inception", is_published=True)
    whole = adm_file(tmp_path, extractor).read_bytes()
    torn, text, damaged = (tmp_path / f"{name}.npz" for name in ("torn", "text", "damaged"))
    torn.write_bytes(whole[: len(whole) // 2])
    text.write_text("mu: 1")
    at = whole.index(b"sigma.npy") + 2000
    damaged.write_bytes(whole[:at] + b"damaged!" + whole[at + 8 :])
    for file in (torn, text, damaged):
        with pytest.raises(UserError, match="cannot be read"):
            read_references(file, [extractor], CPU)
    with pytest.raises(UserError, match="does not exist"):
        read_references(tmp_path / "none.npz", [extractor], CPU)


def test_images_are_not_read_where_they_are_not_needed(tmp_path):
    extractor, file = ColourFeatures(), tmp_path / "real.npz"
    write_references(file, [extractor], {extractor.key: reference_of(extractor)}, {}, real_images())
    with zipfile.ZipFile(file) as archive:
        at = archive.getinfo("arr_0.npy").header_offset + 500
    with open(file, "r+b") as opened:
        opened.seek(at)
        opened.write(b"damaged!")
    assert read_references(file, [extractor], CPU)[extractor.key].moments.num == 40
    with pytest.raises(UserError, match="cannot be read"):
        read_references(file, [ColourFeatures("plain", "another")], CPU)


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_walk_looks_at_a_random_choice_once_and_leaves_bad_images_out(num_workers):
    extractor = ColourFeatures("inception")
    source = Numbers(100, bad=(3, 50, 51))
    walk = Walk(source, 4, 4, CPU, 60, 40, 10, batch_size=7, num_workers=num_workers)
    gathered = walk.gather([extractor])
    reference = references_of(gathered)["colours"]
    chosen = [index for index in walk.order if index not in source.bad]
    assert len(set(walk.order)) == 60
    images = [source.load(int(index), 0, 4, 4).image for index in chosen]
    everything = features_of(extractor, np.stack(images))
    assert reference.moments.num == gathered.num_images == len(chosen)
    torch.testing.assert_close(reference.moments.cov, Moments.of(everything.pool).cov)
    bad = sum(index in source.bad for index in walk.order[:40])
    torch.testing.assert_close(reference.features, everything.pool[: 40 - bad])
    torch.testing.assert_close(reference.logits, everything.logits[: 40 - bad])
    np.testing.assert_array_equal(gathered.images, np.stack(images[:10]))
    assert {entry["index"] for entry in gathered.bad} == set(source.bad) & set(walk.order.tolist())


def test_kept_images_are_a_random_choice_that_the_seed_decides():
    orders = [Walk(Numbers(50), 4, 4, CPU, 30, 20, seed=seed).order for seed in (0, 0, 1)]
    assert (orders[0] == orders[1]).all()
    assert (orders[0] != orders[2]).any()
    assert (orders[0][:20] != np.sort(orders[0][:20])).any()
    assert (orders[0][20:] == np.sort(orders[0][20:])).all()


def test_a_walk_refuses_what_it_cannot_do():
    with pytest.raises(UserError, match=r"num_images must lie in 2 … 9, .* got 10"):
        Walk(Numbers(9), 4, 4, CPU, 10)
    with pytest.raises(UserError, match="num_images_kept must be at most num_kept=3, got 4"):
        Walk(Numbers(9), 4, 4, CPU, None, 3, 4)
    with pytest.raises(UserError, match="at least 2 images, got 1 that could be read of 3"):
        Walk(Numbers(3, bad=(0, 2)), 4, 4, CPU).gather([ColourFeatures()])


def test_a_walk_sees_nothing_of_a_trainings_flips_crops_and_captions(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (12, 8, 20, 3)).astype(np.uint8)
    for index, image in enumerate(pixels):
        file = tmp_path / "ab"[index % 2] / f"{index}.png"
        file.parent.mkdir(exist_ok=True)
        Image.fromarray(image).save(file)
    varied = ImageFolder(str(tmp_path), flip_prob=1.0, crop="random")
    mix = Mix([varied])
    mix.open()
    gathered = Walk(mix, 8, 8, CPU, num_images_kept=12).gather([ColourFeatures()])
    middles = {image[:, 6:14].tobytes() for image in pixels}
    assert {image.tobytes() for image in gathered.images} == middles
    assert varied.view.flip_prob == 1.0
    assert mix.sources == [varied]


def test_a_reference_without_kept_images_comes_back_without(tmp_path):
    extractor, file = ColourFeatures(), tmp_path / "real.npz"
    moments = Moments.of(randn(100, 30))
    write_references(file, [extractor], {extractor.key: Reference(moments)}, {})
    found = read_references(file, [extractor], CPU)[extractor.key]
    torch.testing.assert_close(found.moments.cov, moments.cov)
    assert found[1:] == (None, None, None, None)
