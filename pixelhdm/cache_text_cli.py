"""The command cache-text on the command line."""

from collections.abc import Callable

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from pixelhdm.cache_text import cache_text
from pixelhdm.data.prompts import read_prompts
from pixelhdm.data.source import ImageSource
from pixelhdm.errors import UserError
from pixelhdm.models.conditioners.conditioner import Conditioner
from pixelhdm.models.conditioners.text_conditioner import TextConditioner
from pixelhdm.parser import Parser
from pixelhdm.trainer_cli import USAGE, PixelHDMCLI, set_threads

ANY_DIM = 8  # width of a context that nobody asks for


class CacheTextCLI(PixelHDMCLI):
    """The command cache-text: takes what fit takes, so that encoder and data are the training's,
    and builds these alone.
    """

    def subcommands(self) -> dict[str, set[str]]:
        return {"fit": super().subcommands()["fit"]}

    @classmethod
    def usages(cls) -> dict[str, dict[str, str]]:
        about = "Encode the captions of a training's shards. Takes all files and flags of fit."
        return {"fit": {"usage": f"main.py cache-text {USAGE}", "description": about}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        built_here = {"encoder", "sources", "prompts"}
        self.own_options = parser.add_function_arguments(cache_text, skip=built_here)
        super().add_default_arguments_to_parser(parser)

    def before_instantiate_classes(self) -> None:
        set_threads(self.config[self.subcommand])

    def instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        parser = Parser(allow_abbrev=False)
        parser.add_argument("--model.conditioner", type=Callable[[int], Conditioner])
        for name in ("train", "val"):
            parser.add_argument(f"--data.{name}", type=ImageSource | None)
        given = Namespace(
            {
                "model.conditioner": config.model.conditioner,
                "data.train": config.data.train,
                "data.val": config.data.val,
            }
        )
        parts = parser.instantiate_classes(given)
        self.conditioner = parts.model.conditioner(ANY_DIM)
        sources = parts.data.train, parts.data.val
        self.sources = [source for source in sources if source is not None]

    def _run_subcommand(self, subcommand: str) -> None:
        config = self.config[subcommand]
        if not isinstance(self.conditioner, TextConditioner):
            raise UserError(
                "model.conditioner must be one of texts, such as Qwen3Conditioner, to cache them, "
                f"got {type(self.conditioner).__name__}."
            )
        given = config.data.prompts
        prompts = read_prompts(given).prompts if given else []
        texts = [text for prompt in prompts for text in (prompt.text, prompt.negative)]
        sources = [config.data.draw.source, *(prompt.start.source for prompt in prompts)]
        texts += [source for source in sources if isinstance(source, str)]
        options = {name: config[name] for name in self.own_options}
        cache_text(self.conditioner.encoder, self.sources, texts, **options)
