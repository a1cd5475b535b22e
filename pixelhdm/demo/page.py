"""The demo's page."""

from collections.abc import Iterator
from html import escape
from typing import Any

import gradio as gr
import torch
from PIL import Image

from pixelhdm.demo.form import Form
from pixelhdm.demo.markup import (
    as_png,
    facts_html,
    head_html,
    mistake_html,
    pictures_html,
    progress_html,
    state_html,
)
from pixelhdm.demo.picture import Picture
from pixelhdm.demo.settings import Settings
from pixelhdm.demo.start import for_editor, from_editor
from pixelhdm.demo.studio import Studio
from pixelhdm.demo.watcher import Progress, Stopped
from pixelhdm.errors import UserError

SMALL = 128  # pixels; thumbnails of smaller pictures stay sharp
KEPT_SECONDS, WARNED_SECONDS = 24 * 3600, 5
HINT = "Paint over what is to be drawn anew; without any paint it is the whole picture."
EMPTY = '<div class="pictures">Nothing is drawn yet.</div>'
Update = dict[Any, Any]


class Page:
    """A form, the picture that is drawn or chosen, and all earlier ones with their settings.

    Args:
        studio: what draws.

    Attributes:
        blocks: the page as Gradio serves it.
    """

    def __init__(self, studio: Studio):
        self.studio, self.form = studio, Form(studio)
        with gr.Blocks(
            title="PixelHDM", analytics_enabled=False, delete_cache=(KEPT_SECONDS, KEPT_SECONDS)
        ) as self.blocks:
            self.pictures, self.chosen, self.session = gr.State([]), gr.State(None), gr.State("")
            with gr.Row(equal_height=False, elem_id="layout"):
                with gr.Column(elem_id="ask", min_width=0):
                    self.add_request()
                with gr.Column(elem_id="results", min_width=0):
                    self.add_results()
                with gr.Column(elem_id="settings", min_width=0):
                    self.add_settings()
            self.connect()

    def add_request(self) -> None:
        """What is to be seen."""
        gr.HTML(head_html(self.studio.model), elem_id="head", padding=False)
        self.form.add_condition()
        with gr.Row():
            self.draw_button = gr.Button("Draw", variant="primary", min_width=90, elem_id="draw")
            self.stop_button = gr.Button("Stop", min_width=90, elem_id="stop")

    def add_settings(self) -> None:
        """How it is drawn."""
        self.form.add_numbers()
        with gr.Accordion("More settings", open=False):
            self.form.add_more()
        with gr.Accordion("Begin with a picture", open=False, elem_id="start"):
            gr.HTML(HINT, elem_id="hint", padding=False)
            self.editor = gr.ImageEditor(
                show_label=False,
                type="pil",
                format="png",
                layers=False,
                sources=["upload", "clipboard"],
                transforms=["crop"],
                brush=gr.Brush(colors=["#ff3b8d"], color_mode="fixed"),
                elem_id="editor",
            )
            self.take_button = gr.Button("Take the chosen picture", size="sm", elem_id="take")
            self.form.add_start()

    def add_results(self) -> None:
        """What is drawn."""
        size = max(self.studio.pipe.height, self.studio.pipe.width)
        self.stage = gr.HTML(EMPTY, elem_id="stage", padding=False)
        self.state = gr.HTML(state_html("Ready."), elem_id="state", padding=False)
        self.gallery = gr.Gallery(
            show_label=False,
            visible=False,
            columns=8,
            allow_preview=False,
            object_fit="contain",
            format="png",
            buttons=[],
            interactive=False,
            elem_id="history",
            elem_classes=["sharp"] if size < SMALL else [],
        )
        self.facts = gr.HTML("", elem_id="facts", padding=False)
        with gr.Row(visible=False) as self.actions:
            self.download = gr.DownloadButton("Download PNG", size="sm", elem_id="download")
            self.way = gr.DownloadButton("Download animation", size="sm", elem_id="way")
            self.reuse = gr.Button("Take these settings", size="sm", elem_id="reuse")

    def connect(self) -> None:
        """What happens when somebody does something."""
        form = self.form.components
        shown = [
            self.stage,
            self.state,
            self.gallery,
            self.facts,
            self.actions,
            self.download,
            self.way,
        ]
        triggers = [self.draw_button.click]
        if self.studio.pipe.is_text:
            triggers.append(self.form.fields["condition"].submit)
        gr.on(
            triggers,
            lambda given: (yield from self.draw(given)),  # a generator in Gradio's eyes
            {*form, self.editor, self.pictures, self.session},
            [*shown, self.pictures, self.chosen],
            concurrency_limit=None,  # the studio has them draw one after another
            show_progress="minimal",
            show_progress_on=self.state,
            api_visibility="private",
        )
        hidden = {"show_progress": "hidden", "api_visibility": "private"}
        self.stop_button.click(self.end, queue=False, **hidden)
        self.gallery.select(self.choose, self.pictures, [*shown, self.chosen], **hidden)
        self.reuse.click(self.settings_of, self.chosen, form, **hidden)
        self.take_button.click(self.image_of, self.chosen, self.editor, **hidden)
        self.blocks.load(session_of, None, self.session, **hidden)
        self.blocks.unload(self.end)

    def draw(self, given: Update) -> Iterator[Update]:
        """Draw, and show how far it is; a mistake of the person is said on the page."""
        settings = Settings(*(given[component] for component in self.form.components))
        start = from_editor(given[self.editor])
        try:
            for news in self.studio.draw(settings, start, given[self.session]):
                if isinstance(news, Progress):
                    yield self.preview(news)
                else:
                    yield self.finished(news, given[self.pictures])
        except Stopped:
            yield {self.state: state_html("Stopped.")}
        except UserError as error:
            yield self.refusal(str(error))
        except torch.OutOfMemoryError:
            yield self.refusal("The memory is too small for this. Draw fewer or smaller images.")

    def preview(self, progress: Progress) -> Update:
        """A drawing that goes on."""
        state = {self.state: progress_html(progress.part, progress.text)}
        if not progress.images:
            return state
        width, height = progress.images[0].size
        pngs = [as_png(image) for image in progress.images]
        return state | {self.stage: pictures_html(pngs, height, width)}

    def refusal(self, reason: str) -> Update:
        """Something that cannot be drawn."""
        gr.Warning(escape(reason), duration=WARNED_SECONDS)
        return {self.state: mistake_html(reason)}

    def finished(self, new: list[Picture], earlier: list[Picture]) -> Update:
        """New pictures, the first of which is chosen."""
        pictures = [*new, *earlier]
        seeds = ", ".join(str(picture.settings.seed) for picture in new)
        return self.shown(new) | {
            self.state: state_html(f"Drawn. Seed{'s' * (len(new) > 1)} {seeds}"),
            self.gallery: gr.Gallery(
                [str(picture.file) for picture in pictures], selected_index=None, visible=True
            ),
            self.pictures: pictures,
        }

    def shown(self, pictures: list[Picture]) -> Update:
        """Pictures at large, with the settings of the first."""
        first = pictures[0]
        pngs = [picture.file.read_bytes() for picture in pictures]
        return {
            self.stage: pictures_html(pngs, first.settings.height, first.settings.width),
            self.facts: facts_html(first.facts),
            self.actions: gr.Row(visible=True),
            self.download: gr.DownloadButton(value=str(first.file)),
            self.way: gr.DownloadButton(
                value=None if first.animation is None else str(first.animation),
                visible=first.animation is not None,
            ),
            self.chosen: first,
        }

    def choose(self, pictures: list[Picture], event: gr.SelectData) -> Update:
        """An earlier picture that somebody clicks at."""
        return self.shown([pictures[event.index]])

    def settings_of(self, chosen: Picture | None) -> list[Any]:
        """What the form said when a picture was drawn, with the seed that it had."""
        return list(chosen.settings)

    def image_of(self, chosen: Picture | None) -> Update:
        """The chosen picture, to begin with."""
        if chosen is None:
            gr.Warning("Draw or choose a picture first, or upload one.")
            return gr.skip()
        with Image.open(chosen.file) as image:
            return {self.editor: for_editor(image.convert("RGB"))}

    def end(self, request: gr.Request) -> None:
        """End the drawing of somebody who asks for it, or has left the page."""
        self.studio.stop(request.session_hash)


def session_of(request: gr.Request) -> str:
    """The name of the tab that asks."""
    return request.session_hash
