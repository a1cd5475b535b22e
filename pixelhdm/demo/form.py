"""The form of the demo: one component for each field of Settings."""

import gradio as gr
from gradio.components import Component

from pixelhdm.demo.settings import Settings, solvers, title_of
from pixelhdm.demo.studio import Studio


class Form:
    """The fields that every picture has; the page shows `start` ones where it has a picture.

    Args:
        studio: what draws; its model's own way is what the form first shows.

    Attributes:
        fields: the components by the names of Settings.
    """

    def __init__(self, studio: Studio):
        self.studio, self.fields = studio, dict[str, Component]()

    def add_condition(self) -> None:
        """What is to be seen."""
        pipe = self.studio.pipe
        if pipe.is_text:
            condition = gr.Textbox(
                label="Prompt", lines=2, max_lines=6, elem_id="condition", submit_btn=False
            )
        elif pipe.classes:
            names = [(name, number) for number, name in enumerate(pipe.classes)]
            condition = gr.Dropdown(names, value=0, label="Class", elem_id="condition")
        else:
            condition = gr.Number(0, label="Class number", elem_id="condition")
        self.fields["condition"] = condition
        self.fields["negative"] = gr.Textbox(
            label="Negative prompt",
            info="what is not to be seen; needs a guidance scale other than 1",
            visible=pipe.is_text,
            elem_id="negative",
        )

    def add_numbers(self) -> None:
        """Size, seed, solver and guidance."""
        pipe, patch = self.studio.pipe, self.studio.network.patch_size
        with gr.Row():
            self.number("height", pipe.height, "Height", step=patch)
            self.number("width", pipe.width, "Width", step=patch)
            self.number("num_images", 1, "Images")
        with gr.Row():
            own = pipe.sampler
            self.fields["solver"] = gr.Dropdown(
                list(solvers(own)), value=title_of(own), label="Solver", min_width=110
            )
            self.number("num_steps", own.num_steps, "Steps")
            self.number("seed", -1, "Seed, -1: random")
        scale = pipe.guidance.scale
        self.slider("scale", scale, "Guidance scale", 15, step=0.1, info="1 switches it off")

    def add_more(self) -> None:
        """What few people change."""
        guidance, shift = self.studio.pipe.guidance, self.studio.pipe.time_grid.shift
        with gr.Row():
            self.slider("interval_start", guidance.interval[0], "Guidance from", 1)
            self.slider("interval_end", guidance.interval[1], "Guidance until", 1)
        self.slider("rescale", guidance.rescale, "Rescale", 1, info="against glaring colours")
        self.fields["shift"] = gr.Number(
            None if shift == "flow" else shift,
            label="Time shift",
            info="1 keeps the steps even, more puts them nearer to noise; empty: as trained",
            elem_id="shift",
        )

        self.fields["is_animated"] = gr.Checkbox(
            False,
            label="Keep the way from noise to image as an animation",
            elem_id="is_animated",
        )

    def add_start(self) -> None:
        """How a picture to begin with is used."""
        self.slider(
            "strength",
            0.6,
            "Strength",
            1,
            info="0 gives the picture back, 1 ignores it; 1 suits painted parts",
        )
        self.fields["source"] = gr.Textbox(
            label="What the picture shows",
            info="edits it into the prompt (FlowEdit), where what both say stays",
            visible=self.studio.pipe.is_text,
            elem_id="source",
        )

    def number(self, name: str, value: int, label: str, step: int = 1) -> None:
        """Add a field of a whole number; what it may be is said when something is drawn."""
        self.fields[name] = gr.Number(value, label=label, step=step, min_width=90, elem_id=name)

    def slider(
        self, name: str, value: float, label: str, most: float, step: float = 0.01, info: str = ""
    ) -> None:
        """Add a field of a number from 0 on."""
        self.fields[name] = gr.Slider(
            min(0, value), max(most, value), value, step=step, label=label, info=info, elem_id=name
        )

    @property
    def components(self) -> list[Component]:
        """The components in the order of Settings."""
        return [self.fields[name] for name in Settings._fields]
