from pixelhdm.start import main

if __name__ == "__main__":  # processes that load data import this file too
    main()
