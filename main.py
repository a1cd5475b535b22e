from pixelhdm.cli import main

if __name__ == "__main__":  # processes that load data import this file too
    main()
