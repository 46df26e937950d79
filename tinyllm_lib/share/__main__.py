import sys

from tinyllm_lib.share.commands import main

if __name__ == "__main__":
    sys.exit(main())
