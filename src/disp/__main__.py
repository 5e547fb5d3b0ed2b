"""`python -m disp` is `disp`."""

from disp.cli import main

main()
