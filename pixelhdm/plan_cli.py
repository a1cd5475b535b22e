"""The command plan on the command line."""

from lightning.pytorch.cli import LightningArgumentParser

from pixelhdm.trainer_cli import USAGE, PixelHDMCLI, check_trainer, set_threads


class PlanCLI(PixelHDMCLI):
    """The command plan: takes what fit takes, and runs nothing of it."""

    def subcommands(self) -> dict[str, set[str]]:
        return {"fit": super().subcommands()["fit"]}

    @classmethod
    def usages(cls) -> dict[str, dict[str, str]]:
        about = (
            "Predict memory, arithmetic, speed and days of a training on a GPU, and say what fits, "
            "before anything runs: without data, weights and network. Takes all files and flags of "
            "fit."
        )
        return {"fit": {"usage": f"main.py plan {USAGE}", "description": about}}

    def add_default_arguments_to_parser(self, parser: LightningArgumentParser) -> None:
        # Imported here: other commands need not wait for it.
        from pixelhdm.planning.plan import plan

        self.own_options = parser.add_function_arguments(plan, skip={"config"})
        super().add_default_arguments_to_parser(parser)

    def before_instantiate_classes(self) -> None:
        config = self.config[self.subcommand]
        check_trainer(config.trainer, self.subcommand)
        set_threads(config)

    def instantiate_classes(self) -> None:
        """Build nothing: the plan's parts have no numbers."""

    def _run_subcommand(self, subcommand: str) -> None:
        from pixelhdm.planning.plan import plan

        config = self.config[subcommand]
        plan(config, **{name.removeprefix("fit."): config[name] for name in self.own_options})
