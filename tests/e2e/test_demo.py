"""The demo's page in a real browser without a window."""

import base64
import io
import re
import shutil
import socket
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pixelhdm.demo import command
from pixelhdm.demo.studio import Studio
from pixelhdm.errors import UserError

sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
page_module = pytest.importorskip("pixelhdm.demo.page", reason="pip install 'gradio>=6,<7'")
NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking"
NO_UPDATES = "--disable-component-update --disable-sync"
PATIENCE = 20_000  # milliseconds, on a busy machine


def free_port() -> int:
    """A port that nobody listens at."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module")
def served(quickstart: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple]:
    """The page of a quick run and its address."""
    pipe = command.read_pipeline(str(quickstart / "runs/quickstart"), None, "ema", "cpu", None)
    page = page_module.Page(Studio(pipe, tmp_path_factory.mktemp("drawn"), "quickstart"))
    port = free_port()
    command.open_page(page, "127.0.0.1", port, share=False)
    yield page, f"http://127.0.0.1:{port}/"
    page.blocks.close(verbose=False)


@pytest.fixture(scope="module")
def browser() -> Iterator["sync_api.Browser"]:
    """Chromium without a window."""
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)
        if found is None:
            pytest.skip("no Chromium on this machine: apt-get install chromium")
        flags = [*FLAGS.split(), *NO_UPDATES.split()]
        chromium = playwright.chromium.launch(executable_path=found, args=flags)
        yield chromium
        chromium.close()


@pytest.fixture
def tab(browser: "sync_api.Browser", served: tuple) -> Iterator["sync_api.Page"]:
    """The page as somebody has just opened it; it must ask nothing of any other machine."""
    address, elsewhere, broken = served[1], [], []
    tab = browser.new_page()
    tab.set_default_timeout(PATIENCE)
    tab.on("request", lambda request: elsewhere.append(request.url))
    tab.on("pageerror", lambda error: broken.append(str(error)))
    tab.goto(address)
    tab.wait_for_selector("#draw")
    yield tab
    tab.close()
    assert not broken
    assert not [url for url in elsewhere if not url.startswith((address, "data:", "blob:"))]


def draw(tab: "sync_api.Page", says: str, **fields: object) -> str:
    """Fill in fields, press Draw and wait for what the page says then; a click while the last
    drawing is not quite over would draw nothing.
    """
    tab.locator("#state .generating").wait_for(state="detached")
    for name, value in fields.items():
        tab.fill(f"#{name} input", str(value))
    tab.click("#draw")
    state = tab.locator("#state .state", has_text=re.compile(says))
    state.wait_for()
    return state.inner_text()


def shown(tab: "sync_api.Page") -> list[np.ndarray]:
    """The pictures at large."""
    sources = tab.locator("#stage img").evaluate_all("images => images.map(image => image.src)")
    files = [io.BytesIO(base64.b64decode(source.split(",", 1)[1])) for source in sources]
    return [np.asarray(Image.open(file)) for file in files]


def test_page_draws_the_picture_that_predict_draws(
    tab: "sync_api.Page", run: Callable[..., str], trained: None
) -> None:
    draw(tab, "Seed 11", condition=4, seed=11)

    draws = "--data.draw={classes: 4, num_images: 1, seed: 11}"
    config = ["-c", "runs/quickstart/config.yaml", "--ckpt_path=last", draws]
    run("predict", *config, "--save_images.folder=out")
    with Image.open("out/class0004_seed000011.png") as expected:
        assert np.array_equal(shown(tab)[0], np.asarray(expected))
        facts = {name: value for name, value in expected.info.items() if name != "pixelhdm.config"}
    with tab.expect_download() as download:
        tab.click("#download")
    with Image.open(download.value.path()) as saved:
        for name in ("class", "seed", "scale", "size", "sampler", "steps"):
            assert saved.info[f"pixelhdm.{name}"] == facts[f"pixelhdm.{name}"]


def test_earlier_pictures_come_back_with_their_settings(tab: "sync_api.Page") -> None:
    draw(tab, "Seed 1", condition=2, seed=1)
    first = shown(tab)[0]
    draw(tab, "Seeds 7, 8", condition=3, seed=7, num_images=2, num_steps=2)
    assert len(shown(tab)) == 2

    tab.click("#history button >> nth=2")
    sync_api.expect(tab.locator("#stage img")).to_have_count(1, timeout=PATIENCE)
    assert np.array_equal(shown(tab)[0], first)
    tab.click("#reuse")

    sync_api.expect(tab.locator("#condition input")).to_have_value("2", timeout=PATIENCE)
    sync_api.expect(tab.locator("#seed input")).to_have_value("1")
    sync_api.expect(tab.locator("#num_images input")).to_have_value("1")


def test_bad_input_is_a_message_and_the_page_goes_on(tab: "sync_api.Page") -> None:
    said = draw(tab, "must", height=7)
    assert said == "image height and width must be multiples of patch_size=4, got 7x8. Use 8x8."
    tab.locator(".toast-body", has_text="multiples of patch_size=4").wait_for()

    assert "class must lie in 0 … 9" in draw(tab, "class must", height=8, condition=10)
    draw(tab, "Drawn", condition=9)


def test_stop_ends_a_long_drawing(tab: "sync_api.Page") -> None:
    draw(tab, "Step", num_images=64, num_steps=1000)
    assert len(shown(tab)) == 64  # a preview

    tab.click("#stop")
    tab.locator("#state .state", has_text="Stopped").wait_for()
    draw(tab, "Drawn", num_images=1, num_steps=2)


def test_chosen_picture_is_what_the_next_one_begins_with(tab: "sync_api.Page") -> None:
    draw(tab, "Seed 1", condition=2, seed=1)
    first = shown(tab)[0]
    tab.click("#start button")
    tab.click("#take")
    tab.wait_for_selector("#editor canvas")
    tab.locator("#editor").get_by_label("Clear canvas").wait_for()
    tab.fill("#strength input[type=number]", "0")
    tab.press("#strength input[type=number]", "Enter")

    draw(tab, "Seed 3", condition=5, seed=3)

    assert np.array_equal(shown(tab)[0], first)


def test_taken_port_is_one_sentence(served: tuple) -> None:
    page, address = served
    port = int(address.rstrip("/").rpartition(":")[2])
    with pytest.raises(UserError, match=f"free address of this machine, got 127.0.0.1:{port}"):
        command.open_page(page_module.Page(page.studio), "127.0.0.1", port, share=False)


def test_app_starts_the_same_demo(
    monkeypatch: pytest.MonkeyPatch, run: Callable[..., str], trained: None
) -> None:
    asked = []
    monkeypatch.setattr(command, "serve", lambda *given: asked.append(given))
    run("demo", "--model=runs/quickstart", "--device=cpu", "--port=1234")
    folder = Path("runs/quickstart")
    checkpoint = max(folder.glob("checkpoints/*.ckpt"))
    flags = [f"--config={folder / 'config.yaml'}", f"--ckpt_path={checkpoint}", "--device=cpu"]
    monkeypatch.setattr(sys, "argv", ["app.py", *flags])
    app = Path(command.__file__).parents[2] / "app.py"
    exec(compile(app.read_text(), app, "exec"), {"__name__": "__main__"})

    (one, *first), (two, *second) = asked
    assert (one.model, two.model) == ("runs/quickstart", str(checkpoint))
    assert (first, second) == (["127.0.0.1", 1234, False], ["127.0.0.1", 7860, False])
    weights = [studio.network.state_dict().values() for studio in (one, two)]
    assert all(map(np.array_equal, *weights))
