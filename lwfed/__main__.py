"""`python -m lwfed`: the same as the `lwfed` command."""

from lwfed.cli.main import main

if __name__ == "__main__":
    main()
