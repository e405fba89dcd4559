"""`python -m art_rs_plugin` is `art-rs`."""

from art_rs_plugin.cli import main

if __name__ == "__main__":
    main()
