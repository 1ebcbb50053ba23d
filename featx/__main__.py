"""The `featx` program, which is also `python -m featx`."""

from featx.interrupts import hear


def main() -> None:
    """Entry point of the program: Ctrl-C is heard before anything that takes time is imported."""
    hear()
    from featx.cli import main as run

    run()


if __name__ == "__main__":
    main()
