"""Prepares in the process that runs it, without the command line."""

import json
import sys

from pixelhdm.data.prepare.prepare import prepare

if __name__ == "__main__":
    prepare(**json.loads(sys.argv[1]))
