"""The command line as a script, where torch.compile traces the blocks and generates no code, which
takes minutes.
"""

import functools

from pixelhdm import cli, module
from pixelhdm.models.compiling import compile_blocks

if __name__ == "__main__":
    module.compile_blocks = functools.partial(compile_blocks, backend="eager")
    cli.main()
