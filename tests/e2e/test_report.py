"""The report of a real run, by the command line and in a browser without a window."""

import re
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.e2e.conftest import QUICK, logged
from tests.e2e.life import fit

NAMES = ("chromium", "chromium-browser", "google-chrome")
FLAGS = "--no-sandbox --disable-gpu --no-first-run --disable-background-networking"
NO_UPDATES = "--disable-component-update --disable-sync"


def figure_of(page: str, title: str) -> str:
    """A chart by its title."""
    return re.search(rf'<figure class="chart"><h3>{title} .*?</figure>', page, re.DOTALL)[0]


def test_resumed_run_with_scores_while_training(run: Callable[..., str], run_folder: Path) -> None:
    quality = "--quality={every_n_steps: 2, num_images: 20, num_real: 40, num_steps: 1, extractor: "
    flags = [*QUICK, f"{quality}tests.stubs.ColourFeatures}}", "--checkpoint.every_n_steps=2"]
    fit(*flags, "--trainer.max_steps=4", folder=run_folder)
    fit(*flags, "--trainer.max_steps=6", "--ckpt_path=last", folder=run_folder)

    said = run("report", "runs/quickstart")

    assert "Wrote runs/quickstart/report.html (0." in said
    page = Path("runs/quickstart/report.html").read_text(encoding="utf-8")
    figure = figure_of(page, "KID while training")
    values = logged("runs/quickstart", "quality/KID")
    assert '"x":[2.0,4.0,6.0]' in figure
    assert ",".join(f"{float(f'{value:.5g}')}" for value in values) in figure
    losses = logged("runs/quickstart", "train/total")
    assert len(losses) == 6
    assert ",".join(f"{float(f'{value:.5g}')}" for value in losses) in figure_of(page, "total")
    assert "6 of 6" in page
    assert "in 2 starts" in page


def test_flag_and_other_file(run: Callable[..., str], trained: None, tmp_path: Path) -> None:
    run("report", "--out", "page.html", "--run", "runs/quickstart", "runs/quickstart")
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "runs/quickstart training" in page or "quickstart training" in page
    with pytest.raises(SystemExit, match="must be the folder of a run, got runs, which has no"):
        run("report", "runs")


def test_page_in_a_browser(run: Callable[..., str], trained: None) -> None:
    sync_api = pytest.importorskip("playwright.sync_api", reason="pip install playwright")
    run("report", "runs/quickstart")
    address = Path("runs/quickstart/report.html").resolve().as_uri()
    asked, broken = [], []
    with sync_api.sync_playwright() as playwright:
        own = playwright.chromium.executable_path
        found = next(filter(None, map(shutil.which, NAMES)), own if Path(own).is_file() else None)
        if found is None:
            pytest.skip("no Chromium on this machine: apt-get install chromium")
        flags = [*FLAGS.split(), *NO_UPDATES.split()]
        browser = playwright.chromium.launch(executable_path=found, args=flags)
        tab = browser.new_page(viewport={"width": 390, "height": 800})
        tab.on("request", lambda request: asked.append(request.url))
        tab.on("pageerror", lambda error: broken.append(str(error)))
        tab.goto(address)
        assert tab.evaluate("document.documentElement.scrollWidth") <= 390

        figure = tab.locator("figure.chart").first
        last, value = figure.locator("b").first.inner_text(), figure.locator("b").first
        figure.locator(":scope > svg").hover(position={"x": 45, "y": 50})
        assert figure.locator("output").inner_text() == "step 1"
        assert float(value.inner_text()) == pytest.approx(
            logged("runs/quickstart", "train/total")[0], rel=1e-3
        )
        tab.mouse.move(0, 0)
        assert value.inner_text() == last
        figure.locator("button").first.click()
        assert figure.locator("g.line").first.is_hidden()

        views = tab.locator(".view")
        assert [view.is_visible() for view in views.all()] == [False, True]
        tab.locator(".slide input").fill("0")
        assert [view.is_visible() for view in views.all()] == [True, False]
        assert tab.locator(".slide output").inner_text() == "step 4"
        loaded = "image => image.decode().then(() => image.naturalWidth)"
        assert views.first.locator("img").first.evaluate(loaded) > 0
        browser.close()
    assert not broken
    assert all(url.startswith(("file:", "data:")) for url in asked)
