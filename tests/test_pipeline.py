"""The pipeline for Python programs."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from pixelhdm.errors import UserError
from pixelhdm.inference.guidance import Guidance
from pixelhdm.inference.pixels import to_pixels
from pixelhdm.inference.request import Request
from pixelhdm.inference.samplers import AdamsSampler, HeunSampler
from pixelhdm.inference.time_grid import TimeGrid
from pixelhdm.module import PixelHDMModule
from pixelhdm.pipeline import PixelHDMPipeline
from tests.inference.models import CLASSES, TEXTS, model_of, write_run

WORDS = ["a red boat", "two cats"]


@pytest.fixture(scope="module")
def of_classes(tmp_path_factory: pytest.TempPathFactory) -> PixelHDMPipeline:
    """A pipeline that stays as it is."""
    return pipeline(tmp_path_factory.mktemp("classes"))


def pipeline(tmp_path: Path, conditioner: dict = CLASSES, **trainer: object) -> PixelHDMPipeline:
    """A pipeline of a run in `tmp_path`/run."""
    run = write_run(tmp_path / "run", conditioner, **trainer)
    pipe = PixelHDMPipeline.from_checkpoint(run, device="cpu")
    pipe.set_progress_bar_config(disable=True)
    return pipe


def predicted(conditioner: dict, request: Request) -> np.ndarray:
    """What the module, and so predict, draws."""
    model = model_of(conditioner)
    module = PixelHDMModule(
        model.network, lambda dim: model.conditioner, HeunSampler(3), Guidance(2.0)
    )
    return module.draw(request).numpy()


def drawn(pipe: PixelHDMPipeline, **asked: object) -> np.ndarray:
    """Pixels of what a pipeline draws."""
    return np.stack([np.asarray(image) for image in pipe(**asked).images])


def test_classes_are_drawn_as_predict_draws_them(tmp_path):
    expected = predicted(CLASSES, Request(torch.tensor([3, 3, 7, 7]), [5, 6, 5, 6], 8, 12))
    pipe = pipeline(tmp_path)
    out = pipe(class_labels=[3, 7], num_images_per_prompt=2, seed=5)
    assert out.seeds == [5, 6, 5, 6]
    np.testing.assert_array_equal(np.stack(out.images), expected)
    in_parts = drawn(pipe, class_labels=[3, 7], num_images_per_prompt=2, seed=5, batch_size=3)
    np.testing.assert_allclose(in_parts.astype(int), expected.astype(int), atol=1)
    numbers = pipe(class_labels=[3, 7], num_images_per_prompt=2, seed=5, output_type="numpy")
    assert numbers.images.shape == (4, 8, 12, 3)
    np.testing.assert_array_equal((numbers.images * 255).round().astype(np.uint8), expected)


def test_prompts_are_drawn_as_predict_draws_them(tmp_path):
    expected = predicted(TEXTS, Request(WORDS, [1, 1], 8, 8, ["blue", "blue"]))
    pipe = pipeline(tmp_path, TEXTS)
    asked = {"prompt": WORDS, "negative_prompt": "blue", "width": 8, "seed": 1}
    np.testing.assert_array_equal(drawn(pipe, **asked), expected)
    assert not np.array_equal(drawn(pipe, **asked | {"negative_prompt": None}), expected)
    images = pipe(**asked, output_type="tensor").images
    np.testing.assert_array_equal(to_pixels(images).numpy(), expected)


def test_a_training_in_bfloat16_is_drawn_in_bfloat16(tmp_path):
    request = Request(torch.tensor([3]), [0], 8, 12)
    with torch.autocast("cpu", dtype=torch.bfloat16, cache_enabled=False):
        expected = predicted(CLASSES, request)
    pipe = pipeline(tmp_path, precision="bf16-mixed")
    np.testing.assert_array_equal(drawn(pipe, class_labels=3, seed=0), expected)
    pipe.to(torch.float32)
    np.testing.assert_array_equal(drawn(pipe, class_labels=3, seed=0), predicted(CLASSES, request))


@pytest.mark.parametrize(("dtype", "levels"), [(torch.bfloat16, 6), (torch.float16, 1)])
def test_half_weights_draw_nearly_the_same(tmp_path, dtype, levels):
    pipe = pipeline(tmp_path)
    exact = drawn(pipe, class_labels=[0, 1], seed=0).astype(int)
    pipe.to(dtype=dtype)
    assert pipe.dtype == dtype
    assert abs(drawn(pipe, class_labels=[0, 1], seed=0) - exact).max() <= levels


def test_a_compiled_network_is_what_is_called(tmp_path, monkeypatch):
    pipe, calls = pipeline(tmp_path), []

    def compiled(call, **settings):
        return lambda *given: calls.append(settings["mode"]) or call(*given)

    monkeypatch.setattr("torch.compile", compiled)
    exact = drawn(pipe, class_labels=1, seed=0)
    pipe.compile(mode="max-autotune")
    np.testing.assert_array_equal(drawn(pipe, class_labels=1, seed=0), exact)
    # Heun's 5, and the first step from pure noise
    assert calls == ["max-autotune"] * 6 * len(pipe.model.network.all_blocks)


def test_an_export_draws_the_same_and_holds_no_path_and_no_pickle(tmp_path):
    pipe = pipeline(tmp_path, TEXTS)
    pipe.save_pretrained(tmp_path / "out", samples=Image.new("RGB", (4, 4)))
    again = PixelHDMPipeline.from_pretrained(tmp_path / "out", device="cpu")
    again.set_progress_bar_config(disable=True)
    asked = {"prompt": WORDS, "seed": 3}
    np.testing.assert_array_equal(drawn(again, **asked), drawn(pipe, **asked))
    assert (again.height, again.width, again.facts) == (8, 12, pipe.facts)
    names = {file.name for file in (tmp_path / "out").iterdir()}
    assert names == {"config.json", "model.safetensors", "README.md", "samples.png"}
    for name in names:
        assert str(tmp_path).encode() not in (tmp_path / "out" / name).read_bytes()
    card = (tmp_path / "out/README.md").read_text(encoding="utf-8")
    assert card.startswith("---\nlibrary_name: pixelhdm\npipeline_tag: text-to-image\n")
    for word in ("import tests.stubs", "| optimizer steps | 12 |", "AdamW", "(samples.png)"):
        assert word in card


def test_what_was_replaced_is_saved(tmp_path):
    pipe = pipeline(tmp_path)
    pipe.sampler, pipe.time_grid = AdamsSampler(4, order=3), TimeGrid("full", "flow")
    pipe.guidance = Guidance(3.0, "cosine", interval=(0.1, 0.9))
    pipe.save_pretrained(tmp_path / "out")
    again = PixelHDMPipeline.from_pretrained(tmp_path / "out", device="cpu")
    assert vars(again.sampler) == {"num_steps": 4, "order": 3}
    assert (again.time_grid, again.guidance.interval) == (pipe.time_grid, (0.1, 0.9))
    assert (again.guidance.scale, again.guidance.schedule) == (3.0, "cosine")


def test_a_weaker_model_comes_along(tmp_path):
    pipe = pipeline(tmp_path)
    pipe.guidance = Guidance(2.0, weak=str(tmp_path / "run"), weak_weights="raw")
    expected = drawn(pipe, class_labels=[1, 2], seed=0)
    pipe.save_pretrained(tmp_path / "out")
    (tmp_path / "run/checkpoints/step_00000012.ckpt").unlink()
    (tmp_path / "out").rename(tmp_path / "moved")
    again = PixelHDMPipeline.from_pretrained(tmp_path / "moved", device="cpu")
    again.set_progress_bar_config(disable=True)
    np.testing.assert_array_equal(drawn(again, class_labels=[1, 2], seed=0), expected)


def test_seeds_come_from_lists_generators_and_the_global_generator(of_classes):
    pipe = of_classes
    base = drawn(pipe, class_labels=[1, 2], seed=[8, 9])
    np.testing.assert_array_equal(base[:1], drawn(pipe, class_labels=1, seed=8, batch_size=1))
    made = [pipe(class_labels=[1, 2], generator=torch.Generator().manual_seed(4)) for _ in range(2)]
    assert made[0].seeds == made[1].seeds
    again = drawn(pipe, class_labels=[1, 2], seed=made[0].seeds)
    np.testing.assert_array_equal(np.stack(made[0].images), again)
    several = [torch.Generator().manual_seed(number) for number in (4, 5)]
    assert pipe(class_labels=[1, 2], generator=several).seeds[0] == made[0].seeds[0]
    torch.manual_seed(0)
    first = pipe(class_labels=1).seeds
    assert pipe(class_labels=1).seeds != first
    torch.manual_seed(0)
    assert pipe(class_labels=1).seeds == first


def test_a_callback_sees_each_step_and_changes_the_image(of_classes):
    pipe, seen = of_classes, []

    def look(own, step, t, state):
        seen.append((own is pipe, step, t, state["first"], tuple(state["clean"].shape)))

    pipe(class_labels=[1, 2, 3], seed=0, batch_size=2, callback_on_step_end=look)
    assert [one[1] for one in seen] == [0, 1, 2, 0, 1, 2]
    assert [one[3] for one in seen] == [0, 0, 0, 2, 2, 2]
    assert seen[2] == (True, 2, 1.0, 0, (2, 8, 12, 3))
    white = pipe(
        class_labels=1, callback_on_step_end=lambda *call: {"latents": torch.ones(1, 8, 12, 3)}
    )
    assert np.asarray(white.images[0]).min() == 255


def test_stop_ends_the_call_with_what_is_there(of_classes):
    pipe, clean = of_classes, []

    def stop_in_second_batch(own, step, t, state):
        clean[:] = [state["clean"]]
        if state["first"] == 2 and step == 1:
            own.stop()

    out = pipe(
        class_labels=[1] * 6,
        seed=0,
        batch_size=2,
        output_type="tensor",
        callback_on_step_end=stop_in_second_batch,
    )
    assert out.seeds == [0, 0, 0, 0]
    assert torch.equal(out.images[2:], clean[0].clamp(-1, 1).float())
    assert len(pipe(class_labels=[1] * 6, batch_size=2).images) == 6


def test_images_are_begun_from_kept_and_edited(tmp_path):
    pipe = pipeline(tmp_path, TEXTS)
    pixels = np.random.default_rng(0).integers(0, 256, (8, 12, 3), dtype=np.uint8)
    asked = {"prompt": "a cat", "image": Image.fromarray(pixels), "seed": 0}
    for given in (pixels, torch.from_numpy(pixels), pixels / 255.0, pixels[None]):
        same = drawn(pipe, **asked | {"image": given, "strength": 0.0})
        np.testing.assert_array_equal(same[0], pixels)
    mask = np.zeros((8, 12), dtype=bool)
    mask[:, 6:] = True
    part = drawn(pipe, **asked, mask_image=mask)[0]
    np.testing.assert_array_equal(part[:, :6], pixels[:, :6])
    assert (part[:, 6:] != pixels[:, 6:]).any()
    plain, edited = drawn(pipe, **asked), drawn(pipe, **asked, source_prompt="a dog")
    assert (plain != edited).any()
    assert (drawn(pipe, **asked, strength=0.66, source_prompt="a dog") == edited).all()
    assert (drawn(pipe, **asked, strength=0.7) == plain).all()
    large = np.repeat(np.repeat(pixels, 3, axis=0), 3, axis=1)
    assert drawn(pipe, **asked | {"image": large}).shape == (1, 8, 12, 3)


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({}, "either prompt or class_labels must be given, got neither"),
        ({"prompt": "a", "class_labels": 1}, "must be given, got both"),
        ({"prompt": "a"}, "class_labels must be given to this model, got prompt"),
        ({"class_labels": 10}, r"class must lie in 0 … 9 .*got 10"),
        ({"class_labels": []}, "must name something, got an empty list"),
        ({"class_labels": 1, "negative_prompt": "b"}, "negative_prompt must be empty for a model"),
        ({"class_labels": 1, "height": 9}, "multiples of patch_size=2, got 9x12"),
        ({"class_labels": 1, "seed": [1, 2]}, "as many as images, 1, got 2"),
        ({"class_labels": 1, "seed": -1}, "seed must lie in 0 … 2.63 - 1 for every image, got -1"),
        ({"class_labels": 1, "seed": 1, "generator": torch.Generator()}, "got both"),
        ({"class_labels": 1, "strength": 0.5}, "image must be given where strength is, got none"),
        ({"class_labels": 1, "image": torch.full((8, 8, 3), -1.0)}, "must lie in 0 … 1 as floats"),
        ({"class_labels": 1, "image": np.zeros((3, 8, 8))}, r"got the shape \(3, 8, 8\)"),
        ({"class_labels": [1, 2, 3], "image": [np.zeros((8, 8))] * 2}, "for each of 3 prompts"),
        ({"class_labels": 1, "num_inference_steps": 0}, "num_steps must be at least 1, got 0"),
    ],
)
def test_what_cannot_be_drawn_is_told_in_a_sentence(of_classes, asked, words):
    with pytest.raises(UserError, match=words):
        of_classes(**asked)


def test_text_encoders_alone_are_offloaded(of_classes):
    with pytest.raises(UserError, match="text encoder, got ClassConditioner"):
        of_classes.text_encoder_offload()


def test_a_checkpoint_is_found_with_its_config(tmp_path):
    run = write_run(tmp_path / "run", CLASSES)
    (run / "more.yaml").write_text("model: {guidance: {init_args: {scale: 5.0}}}")
    config = [run / "config.yaml", run / "more.yaml"]
    pipe = PixelHDMPipeline.from_checkpoint("last", config, weights="raw", device="cpu")
    assert (pipe.guidance.scale, pipe.facts["weights"], pipe.is_text) == (5.0, "raw", False)
    assert not any(value.any() for value in pipe.model.network.state_dict().values())
    with pytest.raises(UserError, match="where ckpt_path is last, got none"):
        PixelHDMPipeline.from_checkpoint("last")
    with pytest.raises(UserError, match="ckpt_path must be a checkpoint or the folder"):
        PixelHDMPipeline.from_checkpoint(tmp_path / "none")
    alone = run.rename(tmp_path / "other") / "checkpoints/step_00000012.ckpt"
    (alone.parent.parent / "config.yaml").unlink()
    with pytest.raises(UserError, match=r"config must be given .* Give the training's YAML files"):
        PixelHDMPipeline.from_checkpoint(alone)


def test_the_hub_is_asked_for_names_alone(tmp_path, monkeypatch):
    pipeline(tmp_path).save_pretrained(tmp_path / "out")
    asked = []
    monkeypatch.setattr(
        "pixelhdm.inference.exports.hub.snapshot_download",
        lambda name, **settings: asked.append((name, settings["revision"])) or tmp_path / "out",
    )
    pipe = PixelHDMPipeline.from_pretrained("someone/model", revision="v1", device="cpu")
    assert (asked, pipe.height) == ([("someone/model", "v1")], 8)
    with pytest.raises(UserError, match="nowhere, which does not exist"):
        PixelHDMPipeline.from_pretrained("./nowhere")


def test_a_hub_out_of_reach_is_told_in_a_sentence(monkeypatch, tmp_path):
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="model someone/model must be a folder here or a name"):
        PixelHDMPipeline.from_pretrained("someone/model")


def test_pushing_uploads_the_whole_folder(tmp_path, monkeypatch):
    sent = {}

    class Api:
        def __init__(self, token):
            sent["token"] = token

        def create_repo(self, repo_id, private, exist_ok):
            sent["repo"] = (repo_id, private, exist_ok)
            return f"https://hub/{repo_id}"

        def upload_folder(self, repo_id, folder_path, commit_message):
            sent["files"] = sorted(file.name for file in Path(folder_path).iterdir())

    monkeypatch.setattr("pixelhdm.inference.exports.hub.HfApi", Api)
    url = pipeline(tmp_path).push_to_hub("me/model", private=True, token="secret")
    assert (url, sent["repo"]) == ("https://hub/me/model", ("me/model", True, True))
    assert sent["token"] == "secret"
    assert sent["files"] == ["README.md", "config.json", "model.safetensors"]


def test_unknown_arguments_are_refused(of_classes):
    with pytest.raises(TypeError, match="guidance_scal"):
        of_classes(class_labels=1, guidance_scal=3)


def test_config_json_is_plain(tmp_path):
    pipeline(tmp_path).save_pretrained(tmp_path / "out")
    config = json.loads((tmp_path / "out/config.json").read_text(encoding="utf-8"))
    assert set(config["model"]) == {
        *("network", "conditioner", "flow", "sampler", "guidance", "time_grid")
    }
    assert config["precision"] == "32-true"
