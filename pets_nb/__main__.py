"`python -m pets_nb`"
from pets_nb.tools.cli import main

if __name__ == "__main__": raise SystemExit(main())
