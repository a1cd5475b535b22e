"""From classes and prompts to the list of images to draw."""

from pixelhdm.data.draws import DrawItem, DrawList, Draws
from pixelhdm.data.prompt_fields import IMAGE_ENDING, Prompt
from pixelhdm.data.prompts import Layout, PromptList
from pixelhdm.data.start_files import StartReader, check_has_image, check_has_source
from pixelhdm.errors import UserError

NUM_OF_CLASS, NUM_OF_PROMPT, NUM_OF_BENCHMARK = 10, 1, 4
PLACE = "data.draw"


def class_draws(draws: Draws, size: tuple[int, int]) -> DrawList:
    """The images of draws.classes, of `size` (height, width) where draws has none."""
    num = draws.num_images or NUM_OF_CLASS
    height, width = draws.height or size[0], draws.width or size[1]
    check_has_image(draws.start, PLACE)
    check_has_source(draws.start, PLACE)
    if isinstance(draws.source, str):
        raise UserError(
            f"{PLACE}: source must be a class number where classes are drawn, got {draws.source!r}."
        )
    start = StartReader().start(draws.start, PLACE)
    items = [
        DrawItem(
            number,
            seed,
            height,
            width,
            f"class{number:04d}_seed{seed:06d}{IMAGE_ENDING}",
            group,
            PLACE,
            start=start,
        )
        for group, number in enumerate(draws.class_list)
        for seed in range(draws.seed, draws.seed + num)
    ]
    return DrawList(checked(items), "classes", "", [])


def prompt_draws(listed: PromptList, draws: Draws, size: tuple[int, int]) -> DrawList:
    """The images of prompts; `draws`, then `size`, stand in for what they do not ask for."""
    is_benchmark = listed.layout != "plain"
    num = draws.num_images or (NUM_OF_BENCHMARK if is_benchmark else NUM_OF_PROMPT)
    asked = draws.start
    if asked.source is not None:
        asked = asked._replace(source=str(asked.source))
    if not any(prompt.start.image for prompt in listed.prompts):
        check_has_image(asked, PLACE)
    if all(prompt.start.source is None for prompt in listed.prompts):
        check_has_source(asked, PLACE)
    items, reader = [], StartReader()
    for group, prompt in enumerate(listed.prompts):
        first = draws.seed + num * group * is_benchmark if prompt.seed is None else prompt.seed
        image = prompt.start.image or asked.image
        check_has_image(prompt.start._replace(image=image), prompt.place)
        whole = prompt.start.over(asked)
        check_has_source(prompt.start._replace(source=whole.source), prompt.place)
        start = reader.start(whole, prompt.place)
        items += [
            DrawItem(
                prompt.text,
                first + number,
                prompt.height or draws.height or size[0],
                prompt.width or draws.width or size[1],
                file_of(listed.layout, prompt, group, number, first + number, num > 1),
                group,
                prompt.place,
                prompt.negative,
                prompt.scale,
                start,
            )
            for number in range(num)
        ]
    return DrawList(checked(items), listed.layout, listed.name, listed.prompts)


def file_of(
    layout: Layout, prompt: Prompt, group: int, number: int, seed: int, are_several: bool
) -> str:
    """Where an image of a prompt is saved."""
    if layout == "geneval":
        return f"{group:05d}/samples/{number:05d}{IMAGE_ENDING}"
    if layout == "dpg":
        return f"samples/{prompt.file_name}_seed{seed:06d}{IMAGE_ENDING}"
    if prompt.file_name is None:
        return f"{group:05d}_seed{seed:06d}{IMAGE_ENDING}"
    return prompt.file_name + (f"_seed{seed:06d}" if are_several else "") + IMAGE_ENDING


def checked(items: list[DrawItem]) -> list[DrawItem]:
    """The same images, if each can have its seed and its own file."""
    places: dict[str, str] = {}
    for item in items:
        if item.seed >= 2**63:
            raise UserError(
                f"{item.place}: seed must be below 2^63 for every image, got {item.seed}."
            )
        if item.file in places:
            raise UserError(
                f"{item.place}: every image must have its own file, got {item.file} again, as in "
                f"{places[item.file]}. Choose another file_name."
            )
        places[item.file] = item.place
    return items
