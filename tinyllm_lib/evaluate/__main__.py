import sys

from tinyllm_lib.evaluate.evaluation import main

if __name__ == "__main__":
    sys.exit(main())
