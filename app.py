"""main.py demo by PixelGen's name for it: python app.py --config FILE --ckpt_path=FILE."""

import sys

from pixelhdm.cli import main

if __name__ == "__main__":
    sys.argv[1:] = ["demo", *(word.replace("--ckpt_path", "--model", 1) for word in sys.argv[1:])]
    main()
