"""`python -m featx` is `featx`."""

from featx.cli import main

if __name__ == "__main__":
    main()
