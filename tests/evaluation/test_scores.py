import numpy as np
import pytest
import torch

from pixelhdm.errors import UserError
from pixelhdm.evaluation import distances
from pixelhdm.evaluation.distances import cmmd, frechet_distance, kernel_distance
from pixelhdm.evaluation.extractors.extractor import Features
from pixelhdm.evaluation.moments import Moments
from pixelhdm.evaluation.numbers import floors_of
from pixelhdm.evaluation.reference import Reference
from pixelhdm.evaluation.scores import Score, as_record, from_record, score_table, scores
from tests.evaluation.degraded import DEGRADATIONS, LABELS, digit_images, order
from tests.stubs import ColourFeatures, randn

REAL = 1297


def reference_of(features: Features, num_kept: int) -> Reference:
    """A reference of all of some features that keeps the first."""
    spatial = None if features.spatial is None else Moments.of(features.spatial)
    kept = (None if own is None else own[:num_kept] for own in features)
    return Reference(Moments.of(features.pool), spatial, *kept)


def split(kind: str) -> tuple[ColourFeatures, torch.Tensor, Reference]:
    """An extractor, real images for "drawn" ones, and a reference of the others."""
    extractor, images = ColourFeatures(kind), digit_images()
    return extractor, images[REAL:], reference_of(extractor(images[:REAL]), REAL)


def by_name(found: list[Score]) -> dict[str, float]:
    return {score.name: score.value for score in found}


@pytest.mark.parametrize("degradation", DEGRADATIONS)
def test_the_worse_real_images_are_made_the_worse_are_their_scores(degradation, monkeypatch):
    monkeypatch.setattr(distances, "NUM_SUBSETS", 10)
    for kind, names in (("plain", ("FD-Colours", "KD-Colours")), ("clip", ("CMMD",))):
        extractor, images, reference = split(kind)
        floors = floors_of(extractor, reference, len(images))
        series = [scores(extractor, extractor(images), reference, floors)]
        for change in DEGRADATIONS[degradation]:
            series.append(scores(extractor, extractor(change(images)), reference, floors))
        for at, name in enumerate(names):
            values = [by_name(found)[name] for found in series]
            assert values == sorted(values), name
            assert values[-1] > 3 * abs(series[0][at].floor), name


def test_missing_classes_are_seen_by_distances_and_recall():
    extractor, images = ColourFeatures("inception"), digit_images()
    labels = LABELS[order()]
    reference = reference_of(extractor(images[:900]), 900)
    series = []
    for num_classes in (10, 8, 6, 4, 2):
        chosen = images[900:][torch.from_numpy(labels[900:] < num_classes)][:150]
        series.append(by_name(scores(extractor, extractor(chosen), reference)))
    for name in ("FD-Colours", "KD-Colours", "sFD-Colours"):
        values = [found[name] for found in series]
        assert values == sorted(values), name
    recalls = [found["recall"] for found in series]
    assert recalls == sorted(recalls, reverse=True)
    assert recalls[-1] < 0.5 * recalls[0]
    assert series[-1]["precision"] > 0.8 * series[0]["precision"]


def test_floors_compare_kept_images_with_all_others():
    extractor, _, reference = split("inception")
    floors = floors_of(extractor, reference, 400)
    assert set(floors) == {"FD", "sFD", "IS", "precision", "recall", "KD"}
    real = extractor(digit_images()[:REAL])
    for kind, own in (("FD", real.pool), ("sFD", real.spatial)):
        expected = frechet_distance(Moments.of(own[:400]), Moments.of(own[400:]))
        assert floors[kind] == pytest.approx(expected, rel=1e-6)
    assert floors["KD"] == kernel_distance(real.pool[:400], real.pool[400:]).value
    clip, _, other = split("clip")
    assert floors_of(clip, other, 400) == {"CMMD": cmmd(other.features[:400], other.features[400:])}


def test_a_floor_needs_twice_as_many_real_images():
    extractor, _, reference = split("inception")
    few = reference._replace(features=reference.features[:600])
    assert "FD" in floors_of(extractor, few, 500)
    assert "KD" not in floors_of(extractor, few, 500)
    assert set(floors_of(extractor, reference, 700)) == {"IS"}
    assert floors_of(extractor, few, 700) == {}
    assert floors_of(extractor, reference._replace(features=None), 100) == {}
    foreign = reference._replace(moments=Moments(*reference.moments.parts()[:2], None))
    assert "FD" not in floors_of(extractor, foreign, 100)


@pytest.mark.parametrize(
    ("published", "num", "num_real", "name"),
    [
        (True, 10_000, 10_000, "FID"),
        (True, 10_000, None, "FID"),
        (True, 9_999, 10_000, "FD-Colours"),
        (True, 10_000, 9_999, "FD-Colours"),
        (False, 10_000, 10_000, "FD-Colours"),
    ],
)
def test_the_name_fid_is_kept_for_the_published_network_and_enough_images(
    published, num, num_real, name
):
    extractor = ColourFeatures("inception", is_published=published)
    drawn = Features(randn(num, 3), randn(num, 2))
    moments = Moments(torch.zeros(3).double(), torch.eye(3).double(), num_real)
    spatial = Moments(torch.zeros(2).double(), torch.eye(2).double(), num_real)
    found = scores(extractor, drawn, Reference(moments, spatial))
    assert [score.name for score in found] == [name, f"s{name}"]
    assert {score.num_real for score in found} == {num_real}


def test_scores_refuse_too_few_images_and_broken_features():
    extractor, images, reference = split("plain")
    with pytest.raises(UserError, match="num_images must be at least 10, got 9"):
        scores(extractor, extractor(images[:9]), reference)
    broken = extractor(images)
    broken.pool[3, 3] = torch.nan
    with pytest.raises(UserError, match="features must be finite"):
        scores(extractor, broken, reference)
    clip, _, other = split("clip")
    with pytest.raises(UserError, match="features must be finite"):
        scores(clip, broken, other)


def test_the_table_shows_each_score_with_what_it_is_to_be_read_by():
    score = Score("FID", 12.3456, None, 10_000, 50_000, "Inception", "TF to 299", 3.2, "lower")
    kid = Score("KID", 0.00123, 0.0004, 10_000, 10_000, "Inception", "TF to 299", None, "lower")
    lines = score_table([score, kid]).splitlines()
    words = [" ".join(line.split()) for line in lines]
    assert words[0] == "score value real at n n real extractor resize"
    assert words[1] == "FID ↓ 12.35 3.2 10,000 50,000 Inception TF to 299"
    assert words[2] == "KID ↓ 0.00123 ± 0.0004 – 10,000 10,000 Inception TF to 299"
    assert lines[1].index("Inception") == lines[2].index("Inception")
    assert len(lines) == 6
    assert "--num_kept 20000" in lines[3]
    assert lines[4].startswith("No IS: these weights of Inception lack the classifier")
    whole = [score._replace(num_real=100_000), kid._replace(name="IS", floor=5.0)]
    assert len(score_table(whole).splitlines()) == 3
    assert "with the other 40,000, not with all 50,000" in score_table([score])


@pytest.mark.parametrize(
    ("num", "num_real", "why"),
    [
        (500, 50_000, "it is of 500 images, below 10,000"),
        (10_000, 800, "the reference is of 800 images, below 10,000"),
        (10_000, None, "the weights are not known to be the published FID's"),
    ],
)
def test_the_table_says_why_a_distance_is_not_called_fid(num, num_real, why):
    score = Score("FD-Inception", 1.0, None, num, num_real, "Inception", "", 0.5, "lower")
    assert score_table([score]).splitlines()[2] == f"FD-Inception is no FID: {why}."


def test_a_record_gives_its_score_back():
    extractor, images, reference = split("inception")
    for score in scores(extractor, extractor(images), reference):
        assert from_record(as_record(score)) == score
        assert isinstance(as_record(score), dict)
        assert np.isfinite(score.value)
