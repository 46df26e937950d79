import sys

from tinyllm_lib.generate.terminal import main

if __name__ == "__main__":
    sys.exit(main())
