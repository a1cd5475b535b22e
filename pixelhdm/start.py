"""The first thing that runs: an overview at once, everything else after what it needs is loaded."""

import sys

# Every command with what it does, in the groups of the overview.
COMMANDS = {
    "Train": {
        "fit": "train, or go on with --ckpt_path last",
        "plan": "memory, speed and days of a training on some GPU, before anything is run",
        "validate": "the held-out loss, by time",
        "ema": "an average of another length from a run's snapshots",
        "report": "runs as one page, with losses, samples and scores",
    },
    "Draw": {
        "predict": "draw classes or prompts into files",
        "demo": "a page in the browser that draws",
    },
    "Know how good it is": {
        "test": "FID and its kin, with the score of real images beside each",
        "sweep": "the settings of drawing with the best scores",
        "stats": "reference statistics of a dataset",
        "score": "what GenEval's and DPG's own programs say",
    },
    "Data and models": {
        "prepare": "images of any kind as shards to train on",
        "cache-text": "captions as a text encoder's states, once",
        "export": "a trained model as a folder that draws",
        "convert": "published weights as a run of ours",
    },
}


def main() -> None:
    """Print the overview where it is asked for; else run the command line."""
    if sys.argv[1:] in ([], ["-h"], ["--help"]):
        print(overview())
        return
    from pixelhdm.cli import main as run  # torch and Lightning take seconds

    run()


def overview() -> str:
    """What the command line can do."""
    lines = [
        "usage: main.py COMMAND [-c FILE]... [--key=value]...",
        "",
        "Train and sample image diffusion transformers on pixels.",
    ]
    for group, commands in COMMANDS.items():
        lines += ["", group, *(f"  {name:12}{does}" for name, does in commands.items())]
    return "\n".join(
        [
            *lines,
            "",
            "main.py COMMAND --help lists a command's settings. Start with:",
            "  python main.py fit -c configs_c2i/quickstart.yaml",
        ]
    )
