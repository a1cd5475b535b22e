from pixelhdm.cli import main

main()
